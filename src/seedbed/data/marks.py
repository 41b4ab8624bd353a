"""Find where sentences and words begin, and carry that over from characters to tokens.

A mark is a bit set on the first token of what it marks. A boundary that falls inside a token rounds to that token: a token
that holds the end of one word and the start of the next begins a word. The rules for sentences are for English and
Chinese text and know no grammar; what they get wrong is listed in docs/tokens.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from seedbed.tokenizer.chinese import HAN, han_boundaries
from seedbed.tokenizer.tokenizer import Spans

__all__ = ["DOCUMENT", "LINE", "SENTENCE", "SPECIAL", "WORD", "mark_tokens", "sentence_starts"]

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

_CLOSING = "\"'\u201d\u2019)\\]}\u00bb"
_CJK_CLOSING = "\u300d\u300f\u201d\u2019\uff09\u300b\u3011\u3015)\\]\"'"
_OPENING: Final = "\"'\u201c\u2018([{\u00ab\u00bf\u00a1\u300c\u300e\uff08\u300a*_-\u2013\u2014"
# What follows a Chinese end and shows that the sentence goes on: comma, list comma, colon, or one more end.
_GOES_ON: Final = "\uff0c\u3001\uff1a\uff1b\u3002\uff01\uff1f,:;"

_END: Final = re.compile(
    # Western: ends, closers, white space. What precedes and follows is looked at in code.
    f"(?P<western>[.!?\u2026]+[{_CLOSING}]*)(?=\\s)"
    # Chinese: ends need no white space. The ideographic stop, exclamation, question, semicolon, doubled ellipsis.
    f"|(?:[\u3002\uff01\uff1f\uff1b]+\u2026*|\u2026\u2026+)[\u3002\uff01\uff1f\u2026]*[{_CJK_CLOSING}]*"
    # ASCII ends between Han characters, as typed with the wrong keyboard. Not the full stop: names use it as a dot.
    f"|(?<=[{HAN}])[!?]+[{_CJK_CLOSING}]*(?=[{HAN}])"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LAST_WORD: Final = re.compile(r"[\w.\u2019'-]*$")
_DOTTED: Final = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_NEVER_ENDS: Final = _words(
    "mr mrs ms dr st prof rev hon capt col gen lt sgt messrs mme mlle mt gov sen rep pres vs cf viz esp approx ca e.g i.e"
)
_ENDS_UNLESS_NUMBER: Final = _words(
    "no nos fig figs vol vols p pp ch chap sec art eq jan feb mar apr jun jul aug sep sept oct nov dec"
)
_MAY_END: Final = _words("a.m p.m")


def sentence_starts(text: str) -> list[int]:
    """Return the positions in one line of text where a sentence begins, the start of the line left out.

    A Western sentence ends with `.`, `!`, `?` or an ellipsis, closers, and white space, unless a lower-case letter follows or
    the full stop belongs to an abbreviation, an initial or a list number. A Chinese one ends at its stop, exclamation
    mark, question mark, semicolon or doubled ellipsis and the closers behind it, unless a comma, colon or further stop follows.
    """
    starts: list[int] = []
    begin = len(text) - len(text.lstrip())
    for match in _END.finditer(text):
        at = match.end()
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            break
        ends = (
            _western_end(text, match.start(), match.group(), begin, at)
            if match["western"]
            else text[at] not in _GOES_ON
        )
        if ends:
            starts.append(at)
            begin = at
    return starts


def _western_end(text: str, at: int, end: str, begin: int, following: int) -> bool:
    """Say whether `end`, which stands at `at`, closes the sentence that began at `begin`."""
    while following < len(text) - 1 and text[following] in _OPENING:
        following += 1
    if text[following].islower():
        return False
    if end[0] != "." or end.startswith(".."):
        return True
    # Sixty characters hold any abbreviation; a longer look back would cost squares of the line's length.
    found = _LAST_WORD.search(text, max(begin, at - 60), at)
    word = found.group() if found else ""
    if word.isdigit():
        return bool(text[begin : at - len(word)].strip(_OPENING))  # else "3. Results", a list number
    folded = word.lower()
    if folded in _ENDS_UNLESS_NUMBER:
        return not text[following].isdigit()
    if folded in _MAY_END:
        return True
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    return not (is_initial or folded in _NEVER_ENDS or _DOTTED.fullmatch(word))


def mark_tokens(
    texts: Sequence[str], spans: Spans, *, special_ids: Iterable[int], segment_chinese: bool
) -> npt.NDArray[np.uint8]:
    """Mark where words and sentences begin inside pieces of lines, and which tokens are special.

    Args:
        texts: the pieces that were encoded, each part of one line.
        spans: their tokens.
        special_ids: ids that get SPECIAL.
        segment_chinese: Chinese words from the segmenter; False leaves the tokenizer's pre-tokens.

    Returns:
        (n,) uint8 with WORD, SENTENCE and SPECIAL; the start of a piece begins a word, not yet a sentence.
    """
    marks = np.zeros(len(spans.ids), np.uint8)
    if not len(marks):
        return marks
    # Characters of all pieces get one numbering, with a newline between pieces.
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    bases = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    base = np.repeat(bases, spans.counts)
    starts = spans.starts + base
    ends = spans.ends + base  # never falling: the tokenizer aligns characters in order

    begins = np.ones(len(marks), bool)
    begins[1:] = (spans.pretokens[1:] != spans.pretokens[:-1]) | (base[1:] != base[:-1])
    if segment_chinese:
        text = "\n".join(texts)
        boundaries = han_boundaries(text)
        if len(boundaries):
            codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
            is_inside = _IS_HAN[codes[np.minimum(starts, len(codes) - 1)]]
            is_inside[0] = False
            is_inside[1:] &= base[1:] == base[:-1]
            begins &= ~is_inside
            begins[_tokens_at(boundaries, ends, base)] = True
    sentences = [
        position + offset
        for text, offset in zip(texts, bases.tolist(), strict=True)
        for position in sentence_starts(text)
    ]
    at = _tokens_at(np.array(sentences, np.int64), ends, base)
    begins[at] = True
    marks[begins] |= WORD
    marks[at] |= SENTENCE
    special = np.fromiter(special_ids, np.int64)
    marks[np.isin(spans.ids, special)] |= SPECIAL
    return marks


def _tokens_at(
    positions: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], base: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the tokens that hold these characters, or the next ones of the same piece where no token does."""
    found = np.searchsorted(ends, positions, side="right")
    is_inside = found < len(ends)
    found, positions = found[is_inside], positions[is_inside]
    return found[base[found] <= positions]


def _han_table() -> npt.NDArray[np.bool_]:
    table = np.zeros(0x110000, bool)
    for low, high in re.findall(r"\\[uU]([0-9a-f]+)-\\[uU]([0-9a-f]+)", HAN):
        table[int(low, 16) : int(high, 16) + 1] = True
    return table


_IS_HAN: Final = _han_table()
