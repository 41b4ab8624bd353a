"""Models: a batch in, hidden states out. One Transformer, described by config; a family is a preset of it.

Importing this package does not import torch; `transformer`, `heads`, `language_model` and `huggingface` do.
"""

from __future__ import annotations

from seedbed.models.albert import AlbertConfig
from seedbed.models.bart import BartConfig
from seedbed.models.bert import BertConfig
from seedbed.models.config import TransformerConfig
from seedbed.models.deberta_v2 import DebertaV2Config
from seedbed.models.distilbert import DistilBertConfig
from seedbed.models.electra import ElectraConfig
from seedbed.models.gpt2 import GPT2Config
from seedbed.models.llama import LlamaConfig
from seedbed.models.modernbert import ModernBertConfig
from seedbed.models.native import NativeDecoderConfig, NativeEncoderConfig
from seedbed.models.presets import PRESETS, FamilyConfig
from seedbed.models.roberta import RobertaConfig
from seedbed.models.t5 import T5Config
from seedbed.models.xlnet import XLNetConfig

__all__ = ["MODELS", "PRESETS", "FamilyConfig", "TransformerConfig", "family_of"]

MODELS: dict[str, type[FamilyConfig]] = {
    "albert": AlbertConfig,
    "bart": BartConfig,
    "bert": BertConfig,
    "deberta_v2": DebertaV2Config,
    "distilbert": DistilBertConfig,
    "electra": ElectraConfig,
    "gpt2": GPT2Config,
    "llama": LlamaConfig,
    "modernbert": ModernBertConfig,
    "roberta": RobertaConfig,
    "t5": T5Config,
    "xlnet": XLNetConfig,
    "native_decoder": NativeDecoderConfig,
    "native_encoder": NativeEncoderConfig,
}


def family_of(model_type: object) -> type[FamilyConfig] | None:
    """Return the family whose Hugging Face folders have this `model_type`, or None."""
    for name, family in MODELS.items():
        if model_type == (family.model_type or name) and not family.native_reason:
            return family
    return None
