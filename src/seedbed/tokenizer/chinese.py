"""Know Han characters, and where words begin in a run of them.

The characters are those BERT sets apart (CJK ideographs and their extensions; kana and hangul are not among them). Words
come from rjieba; pieces of text without Han characters are none of this module's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import rjieba

__all__ = ["HAN", "HAN_RUN", "IS_HAN", "cut_words", "han_boundaries"]

HAN: Final = (
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
)
"""The inside of a character class with the ranges of BERT's `_is_chinese_char`."""

HAN_RUN: Final = re.compile(f"[{HAN}]+")


def _han_table() -> npt.NDArray[np.bool_]:
    table = np.zeros(0x110000, bool)
    for low, high in re.findall(r"\\[uU]([0-9a-f]+)-\\[uU]([0-9a-f]+)", HAN):
        table[int(low, 16) : int(high, 16) + 1] = True
    return table


IS_HAN: Final = _han_table()
"""(0x110000,) bool by code point."""
_FIRST_HAN: Final = int(IS_HAN.argmax())


def cut_words(runs: Iterable[str]) -> list[str]:
    """Cut runs of Han characters into words; the words of all runs, one after the other."""
    # One call for all runs: four calls in ten are spent crossing into Rust otherwise. A newline never joins a word.
    return [word for word in rjieba.cut("\n".join(runs)) if word != "\n"]


def han_boundaries(text: str) -> npt.NDArray[np.int64]:
    """Return the character positions in `text` where a Chinese word begins, and where a run of Han characters ends.

    Returns:
        (n,) int64, rising. The end of the text is not among them.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    if not len(codes) or codes.max() < _FIRST_HAN:
        return np.empty(0, np.int64)
    is_run = IS_HAN[codes]
    # A run and the character behind it, which becomes a newline: all runs are cut in one call.
    is_run[1:] |= is_run[:-1]
    kept = np.flatnonzero(is_run)
    joined = codes[kept]
    joined[~IS_HAN[joined]] = ord("\n")
    words = rjieba.cut(joined.astype("<u4").tobytes().decode("utf-32-le"))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    # Words cover what is kept without gaps, and each newline is a word: the end of a run.
    boundaries: npt.NDArray[np.int64] = kept[np.cumsum(lengths) - lengths]
    return boundaries
