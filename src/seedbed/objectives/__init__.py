"""Training objectives: rows to a batch, hidden states to losses. One file each, one line in `OBJECTIVES`."""

from __future__ import annotations

from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.classification import ClassificationConfig
from seedbed.objectives.contrastive import ContrastiveConfig
from seedbed.objectives.denoising import DenoisingConfig
from seedbed.objectives.distillation import DistillationConfig
from seedbed.objectives.fill_in_middle import FillInMiddleConfig
from seedbed.objectives.masked_diffusion import MaskedDiffusionConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.masked_next_token import MaskedNextTokenConfig
from seedbed.objectives.next_sentence import NextSentenceConfig
from seedbed.objectives.permutation_lm import PermutationLMConfig
from seedbed.objectives.prefix_lm import PrefixLMConfig
from seedbed.objectives.replaced_token import ReplacedTokenConfig
from seedbed.objectives.sentence_order import SentenceOrderConfig
from seedbed.objectives.span_corruption import SpanCorruptionConfig
from seedbed.objectives.supervised_generation import SupervisedGenerationConfig

__all__ = ["OBJECTIVES", "CausalLMConfig", "MaskedLMConfig", "Objective", "ObjectiveConfig", "Vocabulary"]

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "causal_lm": CausalLMConfig,
    "classification": ClassificationConfig,
    "contrastive": ContrastiveConfig,
    "denoising": DenoisingConfig,
    "distillation": DistillationConfig,
    "fill_in_middle": FillInMiddleConfig,
    "masked_diffusion": MaskedDiffusionConfig,
    "masked_lm": MaskedLMConfig,
    "masked_next_token": MaskedNextTokenConfig,
    "next_sentence": NextSentenceConfig,
    "permutation_lm": PermutationLMConfig,
    "prefix_lm": PrefixLMConfig,
    "replaced_token": ReplacedTokenConfig,
    "sentence_order": SentenceOrderConfig,
    "span_corruption": SpanCorruptionConfig,
    "supervised_generation": SupervisedGenerationConfig,
}
