"""Models: a batch in, hidden states out. One Transformer, described by config; a family is a preset of it.

Importing this package does not import torch; `transformer`, `heads`, `language_model` and `huggingface` do.
"""

from __future__ import annotations

from seedbed.models.bert import BertConfig
from seedbed.models.config import TransformerConfig
from seedbed.models.gpt2 import GPT2Config
from seedbed.models.llama import LlamaConfig
from seedbed.models.modernbert import ModernBertConfig
from seedbed.models.native import NativeDecoderConfig, NativeEncoderConfig
from seedbed.models.presets import PRESETS, FamilyConfig

__all__ = ["MODELS", "PRESETS", "FamilyConfig", "TransformerConfig"]

MODELS: dict[str, type[FamilyConfig]] = {
    "bert": BertConfig,
    "gpt2": GPT2Config,
    "llama": LlamaConfig,
    "modernbert": ModernBertConfig,
    "native_decoder": NativeDecoderConfig,
    "native_encoder": NativeEncoderConfig,
}
