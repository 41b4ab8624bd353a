"""Bring one line of text into the form every later stage sees.

In order: invisible characters are removed, the Unicode form is applied, every run of white space becomes one space, and
both ends are trimmed. Applying it twice changes nothing. The table is in docs/corpus.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

__all__ = ["Normalizer", "UnicodeForm", "normalizer"]

UnicodeForm = Literal["NFC", "NFKC", "none"]
Normalizer = Callable[[str], str]

# Removed: control characters that are not white space, soft hyphen, zero-width space and no-break space (BOM), marks,
# embeddings and isolates of writing direction, invisible operators, annotation marks. Kept on purpose: zero-width
# joiner and non-joiner (U+200C, U+200D), which change words in Persian and Indic scripts and emoji, and variation selectors.
_REMOVED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb]+"
)


def normalizer(form: UnicodeForm) -> Normalizer:
    """Return the function that normalises one line under this Unicode form.

    The line must hold no newline and no lone surrogate. An empty result means that the line is blank.
    """

    def normalize(line: str) -> str:
        # `isprintable` is false for every character of `_REMOVED` and every white space but the plain one, so most
        # lines leave here after three scans in C.
        if not line.isprintable():
            line = _REMOVED.sub("", line)
        if form != "none" and not line.isascii() and not unicodedata.is_normalized(form, line):
            line = unicodedata.normalize(form, line)
        return " ".join(line.split())

    return normalize
