"""Prefix language modelling: read the first part of a row from both sides, predict the rest from the left.

Source: UniLM (L. Dong et al., arXiv 1905.03197) and T5 (C. Raffel et al., arXiv 1910.10683, section 3.2.1), as one decoder
stack whose attention is full within the prefix.
Differs from them: rows are dense windows without a separator between prefix and rest; where a window holds several
documents, the prefix may end in any of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.rows import dense_batch, places_behind

__all__ = ["PrefixLM", "PrefixLMConfig"]


class PrefixLMConfig(ObjectiveConfig):
    """Prefix language modelling (UniLM, T5)."""

    source: ClassVar = "UniLM (Dong et al., 2019, 1905.03197); T5 (Raffel et al., 2019, 1910.10683)"
    fits: ClassVar = ("decoder",)
    default_model: ClassVar = "llama"
    use: ClassVar = "a decoder that reads its prompt from both sides: answers, summaries, translation"
    speaks: ClassVar = "generate"

    name: Literal["prefix_lm"] = Field("prefix_lm", description="Prefix language modelling.")
    min_prefix_rate: float = Field(0.0, ge=0.0, lt=1.0, description="Shortest prefix, share of the row.")
    max_prefix_rate: float = Field(
        1.0, gt=0.0, le=1.0, description="Longest prefix, share of the row; at least one token is predicted."
    )

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> PrefixLM:
        """Make the objective; see `ObjectiveConfig.build`."""
        return PrefixLM(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class PrefixLM(Objective):
    """Predict what follows a prefix; one term, "prefix_lm".

    The number of targets differs from row to row, so shapes do too; predicting everywhere and weighing the prefix 0 would
    keep them static and cost the head twice.
    """

    terms = ("prefix_lm",)
    config: PrefixLMConfig

    @property
    def raw_row_length(self) -> int:
        """T: the separator before a row takes the place of its last token, which is only predicted."""
        return self.row_length

    def for_evaluation(self) -> PrefixLM:
        """Return prefixes of any length, evenly."""
        return PrefixLM(
            PrefixLMConfig(), self.vocabulary, row_length=self.row_length, is_segmented=self.is_segmented
        )

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Shift rows by one and cut each at a place drawn evenly."""
        length = rows.shape[1]
        position = torch.arange(length)
        first = torch.full_like(rows.ids[:, :1], self.vocabulary.separator_id)
        batch = dense_batch(
            torch.cat([first, rows.ids[:, :-1]], dim=1),
            rows,
            prefix_id=None,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
            causal=True,
        )
        low = (self.config.min_prefix_rate * rows.lengths).long()
        high = torch.maximum((self.config.max_prefix_rate * rows.lengths).long(), low + 1).clamp(
            max=rows.lengths
        )
        share = (draws.rows("prefix_lm cut").long() & 0xFFFFFFFF).double() / 2**32
        cut = low + (share * (high - low)).long()  # (B,) raw tokens in the prefix, fewer than the row has
        # Inputs 0..cut (the separator and the prefix) see each other; input `cut` predicts the first raw token behind.
        order = (position[None, :] - cut[:, None]).clamp(min=0).to(torch.int32)
        predicted = (position[None, :] >= cut[:, None]) & (position[None, :] < rows.lengths[:, None])
        batch = replace(batch, attention="order", attend_order=order)
        targets = Targets(at=places_behind(rows, 0)[predicted], values=rows.ids[predicted])
        return batch, {"prefix_lm": targets}
