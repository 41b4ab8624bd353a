"""Fill-in-the-middle: move a piece from the middle of a document to its end, so that a decoder learns to complete gaps.

Source: M. Bavarian et al., "Efficient Training of Language Models to Fill in the Middle", arXiv 2207.14255: rearranged with
probability 0.5, half of these as prefix-suffix-middle, half as suffix-prefix-middle (section 3), cuts drawn evenly; plain
left-to-right loss on everything.
Differs from it: cuts fall between tokens, not characters (the paper's section 4.4 prefers characters, since a user's gap
may begin within a token); one document of a row is rearranged (context-level, section 4.2), the one at a place drawn
evenly; the three marks push the last three tokens out of the row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.store import DOCUMENT, SPECIAL
from seedbed.data.views import Rows
from seedbed.hashing import threshold
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.causal_lm import CausalLM, CausalLMConfig
from seedbed.objectives.sentinels import mark_id

__all__ = ["FillInMiddle", "FillInMiddleConfig"]


class FillInMiddleConfig(ObjectiveConfig):
    """Fill-in-the-middle (FIM)."""

    source: ClassVar = "Bavarian et al., 2022, 2207.14255"
    fits: ClassVar = ("decoder",)
    needs: ClassVar = "windows of text, three reserved tokens"
    default_model: ClassVar = "llama"
    use: ClassVar = "a decoder that also completes gaps, at no loss from left to right (says the paper)"
    speaks: ClassVar = "generate"

    name: Literal["fill_in_middle"] = Field("fill_in_middle", description="Fill-in-the-middle.")
    fim_rate: float = Field(0.5, ge=0.0, le=1.0, description="Share of rows that are rearranged.")
    suffix_first_rate: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Share of these written suffix-prefix-middle, the rest prefix-suffix-middle.",
    )

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> FillInMiddle:
        """Make the objective; see `ObjectiveConfig.build`."""
        return FillInMiddle(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class FillInMiddle(Objective):
    """Predict every token of rows that may be rearranged; one term, "fill_in_middle"."""

    terms = ("fill_in_middle",)
    config: FillInMiddleConfig

    def __init__(
        self,
        config: FillInMiddleConfig,
        vocabulary: Vocabulary,
        *,
        row_length: int,
        is_segmented: bool,
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self.marks = tuple(mark_id(vocabulary, f"fim_{part}") for part in ("prefix", "suffix", "middle"))
        self._causal = CausalLM(
            CausalLMConfig(), vocabulary, row_length=row_length, is_segmented=is_segmented
        )

    @property
    def raw_row_length(self) -> int:
        """T, as for causal rows."""
        return self.row_length

    def for_evaluation(self) -> FillInMiddle:
        """Return the paper's rates."""
        return FillInMiddle(
            FillInMiddleConfig(), self.vocabulary, row_length=self.row_length, is_segmented=self.is_segmented
        )

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Rearrange some rows, then shift them by one."""
        batch, targets = self._causal.make_batch(self._rearranged(rows, draws), draws, progress=progress)
        return batch, {"fill_in_middle": targets["causal_lm"]}

    def _rearranged(self, rows: Rows, draws: Draws) -> Rows:
        """Return the rows with a document's middle at its end in some of them."""
        chosen = _happens(draws.rows("fill_in_middle row"), self.config.fim_rate)
        suffix_first = _happens(draws.rows("fill_in_middle order"), self.config.suffix_first_rate)
        share = (draws.positions("fill_in_middle cuts", 3).long() & 0xFFFFFFFF).double() / 2**32  # (B, 3)
        ids, marks = rows.ids.numpy().copy(), rows.marks.numpy().copy()
        for row in torch.nonzero(chosen)[:, 0].tolist():
            length = int(rows.lengths[row])
            room = length - len(self.marks)
            if room < 2:
                continue
            where, *cuts = share[row].tolist()
            begin, end = _document_at(marks[row, :room], int(where * room))
            first, second = sorted(begin + int(cut * (end - begin + 1)) for cut in cuts)
            ids[row, :length], marks[row, :length] = self._moved(
                ids[row, :room], marks[row, :room], (begin, first, second, end), bool(suffix_first[row])
            )
        return replace(rows, ids=torch.from_numpy(ids), marks=torch.from_numpy(marks))

    def _moved(
        self, ids: np.ndarray, marks: np.ndarray, at: tuple[int, int, int, int], is_suffix_first: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and marks of one row with tokens first..second of the document begin..end moved to its end."""
        begin, first, second, end = at
        before, suffix, middle = slice(begin, first), slice(second, end), slice(first, second)
        prefix_mark, suffix_mark, middle_mark = (np.array([mark], dtype=ids.dtype) for mark in self.marks)
        if is_suffix_first:
            order = [prefix_mark, suffix_mark, ids[suffix], middle_mark, ids[before], ids[middle]]
        else:
            order = [prefix_mark, ids[before], suffix_mark, ids[suffix], middle_mark, ids[middle]]
        document = np.concatenate(order)
        # Inside a rearranged document only its beginning is marked: nothing else is where it was.
        own = np.zeros(len(document), dtype=marks.dtype)
        own[0] = SPECIAL | (int(marks[begin]) & DOCUMENT if begin < len(marks) else 0)
        return (
            np.concatenate([ids[:begin], document, ids[end:]]),
            np.concatenate([marks[:begin], own, marks[end:]]),
        )


def _document_at(marks: np.ndarray, place: int) -> tuple[int, int]:
    """Return where the document around a place begins and ends in a row; the separator behind it is left out."""
    starts = np.flatnonzero(marks & DOCUMENT)
    begin = int(starts[starts <= place][-1]) if (starts <= place).any() else 0
    later = starts[starts > place]
    end = int(later[0]) if len(later) else len(marks)
    if end > begin and marks[end - 1] & SPECIAL:
        end -= 1
    return begin, end


def _happens(draw: Tensor, rate: float) -> Tensor:
    return torch.ones_like(draw, dtype=torch.bool) if rate >= 1.0 else draw < threshold(rate)
