"""Say which token covers which characters: spans as a tokenizer gives them, and what word and sentence marks need to know.

`lookup.py` has the same answers without spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from seedbed.tokenizer.chinese import IS_HAN

__all__ = ["SpanTokens", "Spans", "Tokens"]

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class Tokens(Protocol):
    """Hold the tokens of several texts; places are characters of all texts joined by one character."""

    @property
    def ids(self) -> Int32s:
        """Return (n,) int32 token ids of all texts, one after the other."""

    @property
    def counts(self) -> Int64s:
        """Return (len(texts),) int64 tokens of each text."""

    @property
    def begins(self) -> Bools:
        """Say of each token whether it begins a pre-token."""

    @property
    def on_han(self) -> Bools:
        """Say of each token whether the first character it covers is a Han character."""

    def at(self, places: Int64s) -> Int64s:
        """Return the tokens that hold these characters, or the next ones of the same text where no token does.

        Args:
            places: (m,) int64, not falling; characters of all texts joined by one character.

        Returns:
            int64, at most m: a place without a token at it or behind it is left out.
        """


@dataclass(frozen=True, slots=True)
class Spans:
    """Hold the tokens of several texts in flat arrays.

    Attributes:
        ids: (n,) int32 token ids of all texts, one after the other.
        starts, ends: (n,) int32 characters of its text that a token covers; a leading blank may be included.
        pretokens: (n,) int32 number of the pre-token within its text.
        counts: (len(texts),) int64 tokens of each text.
    """

    ids: Int32s
    starts: Int32s
    ends: Int32s
    pretokens: Int32s
    counts: Int64s

    def tokens(self, texts: Sequence[str]) -> SpanTokens:
        """Place the tokens in all texts; `texts` are those that were encoded."""
        # Characters of all texts get one numbering, with a newline between texts.
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        base: Int64s = np.repeat(np.cumsum(lengths + 1) - lengths - 1, self.counts)
        starts = self.starts + base
        begins = np.ones(len(base), bool)
        begins[1:] = (self.pretokens[1:] != self.pretokens[:-1]) | (base[1:] != base[:-1])
        codes = np.frombuffer("\n".join(texts).encode("utf-32-le"), "<u4")
        on_han = IS_HAN[codes[np.minimum(starts, len(codes) - 1)]]
        return SpanTokens(self.ids, self.counts, begins, on_han, base + self.ends.astype(np.int64), base)


@dataclass(frozen=True, slots=True)
class SpanTokens:
    """Hold tokens and where they end; see `Tokens`."""

    ids: Int32s
    counts: Int64s
    begins: Bools
    on_han: Bools
    _ends: Int64s  # never falling: a tokenizer aligns characters in order
    _base: Int64s

    def at(self, places: Int64s) -> Int64s:
        """Return the tokens at these places, see `Tokens.at`."""
        found = np.searchsorted(self._ends, places, side="right")
        is_inside = found < len(self._ends)
        found, places = found[is_inside], places[is_inside]
        return found[self._base[found] <= places]
