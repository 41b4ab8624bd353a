"""Find where sentences and words begin, and carry that over from characters to tokens.

A mark is a bit set on the first token of what it marks. A boundary that falls inside a token rounds to that token: a token
that holds the end of one word and the start of the next begins a word. Where sentences begin: tokenizer/sentences.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from seedbed.tokenizer.chinese import han_boundaries
from seedbed.tokenizer.sentences import sentence_starts
from seedbed.tokenizer.spans import Tokens

__all__ = ["DOCUMENT", "LINE", "SENTENCE", "SPECIAL", "WORD", "mark_tokens"]

DOCUMENT: Final = 1
"""First token of a document."""
SENTENCE: Final = 2
"""First token of a sentence; every line begins one."""
WORD: Final = 4
"""First token of a word: a pre-token, or a Chinese word of the segmenter."""
LINE: Final = 8
"""First token of a line of the source."""
SPECIAL: Final = 16
"""A separator or another special token; never masked. A separator is a word and a sentence of its own."""


def mark_tokens(
    texts: Sequence[str], tokens: Tokens, *, special_ids: Iterable[int], segment_chinese: bool
) -> npt.NDArray[np.uint8]:
    """Mark where words and sentences begin inside pieces of lines, and which tokens are special.

    Args:
        texts: the pieces that were encoded, each part of one line.
        tokens: their tokens.
        special_ids: ids that get SPECIAL.
        segment_chinese: Chinese words from the segmenter; False leaves the tokenizer's pre-tokens.

    Returns:
        (n,) uint8 with WORD, SENTENCE and SPECIAL; the start of a piece begins a word, not yet a sentence.
    """
    if not len(tokens.ids):
        return np.zeros(0, np.uint8)
    begins = tokens.begins.copy()
    if segment_chinese:
        boundaries = han_boundaries("\n".join(texts))
        if len(boundaries):
            firsts = (np.cumsum(tokens.counts) - tokens.counts)[tokens.counts > 0]
            begins &= ~tokens.on_han
            begins[firsts] = True
            begins[tokens.at(boundaries)] = True
    at = tokens.at(_sentences(texts))
    begins[at] = True
    marks = begins * np.uint8(WORD)
    marks[at] |= SENTENCE
    special = np.zeros(int(tokens.ids.max()) + 1, np.bool_)
    special[[i for i in special_ids if i < len(special)]] = True
    marks[special[tokens.ids]] |= SPECIAL
    return marks


def _sentences(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the places where sentences begin, the starts of texts left out; characters of all texts joined by one character."""
    places: list[int] = []
    base = 0
    for text in texts:
        if found := sentence_starts(text):
            places += [base + at for at in found]
        base += len(text) + 1
    return np.array(places, np.int64)
