"""Next sentence prediction: say whether the second part follows the first in its document, or comes from another.

Source: BERT, arXiv 1810.04805, section 3.1 and appendix A.2. Label 0: it follows; 1: it is from elsewhere, half of the rows
(as in `BertForPreTraining`). Where rows differ from BERT's is said in `data/pairs.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seedbed.objectives.base import Vocabulary
from seedbed.objectives.sentence_pairs import SentencePair, SentencePairConfig

__all__ = ["NextSentence", "NextSentenceConfig"]


class NextSentenceConfig(SentencePairConfig):
    """Next sentence prediction (BERT)."""

    source: ClassVar = "BERT (Devlin et al., 2018, 1810.04805)"
    use: ClassVar = (
        "to repeat BERT as published; its task is mostly that of topics, and later work left it out"
    )
    speaks: ClassVar[Literal["fill_mask"]] = "fill_mask"

    name: Literal["next_sentence"] = Field("next_sentence", description="Next sentence prediction.")

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> NextSentence:
        """Make the objective; see `ObjectiveConfig.build`."""
        return NextSentence(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class NextSentence(SentencePair):
    """Terms "masked_lm" (unless switched off) and "next_sentence"."""

    kind = "next_sentence"
