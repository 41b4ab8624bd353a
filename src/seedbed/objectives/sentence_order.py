"""Sentence order prediction: say whether two consecutive runs of sentences stand in their order, or exchanged.

Source: ALBERT, arXiv 1909.11942, section 3.1. Label 0: in order; 1: exchanged, half of the rows (as in
`AlbertForPreTraining`). Where rows differ from ALBERT's is said in `data/pairs.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seedbed.objectives.base import Vocabulary
from seedbed.objectives.sentence_pairs import SentencePair, SentencePairConfig

__all__ = ["SentenceOrder", "SentenceOrderConfig"]


class SentenceOrderConfig(SentencePairConfig):
    """Sentence order prediction (ALBERT)."""

    source: ClassVar = "ALBERT (Lan et al., 2019, 1909.11942)"
    use: ClassVar = "coherence between sentences: matching, inference, reading; instead of next_sentence"
    speaks: ClassVar[Literal["fill_mask"]] = "fill_mask"

    name: Literal["sentence_order"] = Field("sentence_order", description="Sentence order prediction.")

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> SentenceOrder:
        """Make the objective; see `ObjectiveConfig.build`."""
        return SentenceOrder(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class SentenceOrder(SentencePair):
    """Terms "masked_lm" (unless switched off) and "sentence_order"."""

    kind = "sentence_order"
