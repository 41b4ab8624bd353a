"""Training objectives: rows to a batch, hidden states to losses. One file each, one line in `OBJECTIVES`."""

from __future__ import annotations

from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig

__all__ = ["OBJECTIVES", "CausalLMConfig", "MaskedLMConfig", "Objective", "ObjectiveConfig", "Vocabulary"]

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "causal_lm": CausalLMConfig,
    "masked_lm": MaskedLMConfig,
}
