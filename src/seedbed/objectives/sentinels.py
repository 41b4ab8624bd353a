"""Give the reserved tokens of a vocabulary their parts: one table, so that no two objectives use a token for two things.

Learned vocabularies reserve `[unused0]`, `[unused1]`, ...; T5's own have `<extra_id_0>`, ... Spans take them from the front,
marks from the back.
"""

from __future__ import annotations

from typing import Final

from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Vocabulary

__all__ = ["mark_id", "num_span_sentinels", "span_sentinels"]

_MARKS: Final = ("fim_prefix", "fim_suffix", "fim_middle", "ul2_short", "ul2_sequential", "ul2_extreme")
"""Marks, counted from the last reserved token; append only: the places are part of trained models."""


def mark_id(vocabulary: Vocabulary, mark: str) -> int:
    """Return the reserved token that plays a mark's part.

    Raises:
        IncompatibleError: the vocabulary reserves too few tokens.
    """
    number = _MARKS.index(mark)
    if len(vocabulary.unused_ids) <= number:
        raise IncompatibleError(
            f"the mark {mark} needs {number + 1} reserved tokens; the vocabulary has {len(vocabulary.unused_ids)}.",
            hint="learn the tokenizer with tokenizer.num_reserved=32",
        )
    return vocabulary.unused_ids[-1 - number]


def num_span_sentinels(vocabulary: Vocabulary) -> int:
    """Return how many spans of a row can be told apart."""
    return max(0, len(vocabulary.unused_ids) - len(_MARKS))


def span_sentinels(vocabulary: Vocabulary, count: int) -> tuple[int, ...]:
    """Return the first `count` reserved tokens, for the spans of a row in order; the marks' are never among them.

    Raises:
        IncompatibleError: the vocabulary reserves too few tokens.
    """
    free = num_span_sentinels(vocabulary)
    if count > free:
        raise IncompatibleError(
            f"rows need up to {count} span sentinels; the vocabulary reserves {free} for spans"
            f" ({len(vocabulary.unused_ids)} tokens, {len(_MARKS)} of them for marks).",
            hint=f"learn the tokenizer with tokenizer.num_reserved={count + len(_MARKS)}, or make spans longer or rows shorter",
        )
    return vocabulary.unused_ids[:count]
