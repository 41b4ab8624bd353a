"""Causal language modelling: predict each token from those before it.

Source: GPT-2 (Radford et al., 2019).
Differs from common practice: a row begins with the separator that ends documents, and predicts all its L tokens, so
that each token of the store is a target exactly once an epoch; elsewhere rows overlap by one token or lose one.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.rows import dense_batch

__all__ = ["CausalLM", "CausalLMConfig"]


class CausalLMConfig(ObjectiveConfig):
    """Causal language modelling (GPT)."""

    source: ClassVar = "GPT-2 (Radford et al., 2019)"
    fits: ClassVar = ("decoder",)
    default_model: ClassVar = "llama"
    use: ClassVar = "text generation, likelihoods; every token is a target"
    speaks: ClassVar = "generate"

    name: Literal["causal_lm"] = Field("causal_lm", description="Causal language modelling.")

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> CausalLM:
        """Make the objective; see `ObjectiveConfig.build`."""
        return CausalLM(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class CausalLM(Objective):
    """Predict every token from the left; one term, "causal_lm"."""

    terms = ("causal_lm",)

    @property
    def raw_row_length(self) -> int:
        """T: the separator before a row takes the place of its last token, which is only predicted."""
        return self.row_length

    def for_evaluation(self) -> CausalLM:
        """Return the plain objective: a smoothed loss or a z-loss cannot be compared with anything."""
        return CausalLM(
            CausalLMConfig(), self.vocabulary, row_length=self.row_length, is_segmented=self.is_segmented
        )

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Shift rows by one; a document's first token is predicted from the separator before it."""
        num_rows, length = rows.shape
        inputs = torch.cat(
            [torch.full_like(rows.ids[:, :1], self.vocabulary.separator_id), rows.ids[:, :-1]], dim=1
        )
        batch = dense_batch(
            inputs,
            rows,
            prefix_id=None,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
            causal=True,
        )
        at = torch.arange(num_rows * length)
        weights = None
        if not rows.is_full:
            weights = (torch.arange(length)[None, :] < rows.lengths[:, None]).float().reshape(-1)
        return batch, {"causal_lm": Targets(at=at, values=rows.ids.reshape(-1), weights=weights)}
