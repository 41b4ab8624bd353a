"""Find where sentences begin in English and Chinese text.

The rules know no grammar; what they get wrong is listed in docs/tokens.md.
"""

from __future__ import annotations

import itertools
import re
from typing import Final

from seedbed.tokenizer.chinese import HAN

__all__ = ["sentence_starts", "sentences"]

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


_MAY_BE_END: Final = re.compile("[.!?\u2026\u3002\uff01\uff1f\uff1b]")
"""How every match of `_END` begins; searching for one of a set of characters is about ten times as fast."""


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
    at = 0
    for candidate in _MAY_BE_END.finditer(text):
        if candidate.start() < at or (match := _END.match(text, candidate.start())) is None:
            continue
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
    before = text[max(begin, at - 60) : at]
    word = before.rsplit(None, 1)[-1] if before and not before[-1].isspace() else ""
    if not word.isalpha() and (found := _LAST_WORD.search(word)):
        word = found.group()
    if word.isdigit():
        return bool(text[begin : at - len(word)].strip(_OPENING))  # else "3. Results", a list number
    folded = word.lower()
    if folded in _ENDS_UNLESS_NUMBER:
        return not text[following].isdigit()
    if folded in _MAY_END:
        return True
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    return not (is_initial or folded in _NEVER_ENDS or _DOTTED.fullmatch(word))


def sentences(text: str) -> list[str]:
    """Return the sentences of one line of text, white space around them left out."""
    cuts = [0, *sentence_starts(text), len(text)]
    return [text[begin:end].strip() for begin, end in itertools.pairwise(cuts)]
