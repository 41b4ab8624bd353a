"""Know where a text may be cut so that its parts, encoded alone, give the ids of the whole.

A tokenizer that looks at one pre-token at a time (WordPiece, BPE) needs no neighbours beyond it, so a text may be cut wherever
a pre-token surely begins, and inside a run of Han characters where no token of a BPE vocabulary could join the two sides. The
rules know the characters that make up nearly all text in English and Chinese; next to any other character they do not cut,
and what is not cut is only slower. Cutting itself lives in `parts.py`, looking up in `lookup.py`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

from seedbed.tokenizer.chinese import HAN
from seedbed.tokenizer.han_pairs import HanPairs, byte_alphabet, han_pairs

__all__ = ["Cuts", "find_cuts"]

UInt8s = npt.NDArray[np.uint8]

# Classes of characters. Bytes after the first of a character get the class behind that of the character.
_DROPPED: Final = 0
"""Text boundaries, and blanks where the tokenizer drops them."""
_WORD, _DIGIT, _PUNCTUATION, _APOSTROPHE, _BLANK = 1, 2, 3, 4, 5
_WIDE: Final = 6
"""Punctuation beyond ASCII."""
_HAN: Final = 8
_OLD_HAN: Final = ((0x3400, 0x4DB5), (0x4E00, 0x9FA5), (0xF900, 0xFA2D), (0x20000, 0x2A6D6))
"""Han characters of Unicode 3.1. The younger ones are among the others: `tokenizers` does not set all of them apart (U+2B820
to U+2B91F are missing), nor are they letters to all versions of its regular expressions."""
_OTHER: Final = 10
"""Everything else: never cut from its neighbours, unless those stand alone whatever is beside them."""
_NUM_CLASSES: Final = 12


@dataclass(frozen=True, slots=True)
class Cuts:
    """Hold the rules of one tokenizer.

    Attributes:
        bytes: (256,) class of each ASCII byte, and `other + 1` for all bytes beyond.
        characters: (0x110000,) class of each code point.
        rule: (256,) for classes a and b side by side, at `a << 4 | b`: bit 1, a part begins at b; bit 2, one ends behind a.
        joiner: stands between parts that are encoded together, without changing them.
        is_plain: (16,) bool: parts that begin and end with such a class may be encoded together.
        is_ascii_word: (16,) bool: a run of such a class alone, letters or digits, is one pre-token.
        pairs: BPE: inside runs of Han characters, which pairs must not be cut.
        dropped, han, blank, other: classes that others need to know.
    """

    bytes: UInt8s
    characters: UInt8s
    rule: UInt8s
    joiner: str
    is_plain: npt.NDArray[np.bool_]
    is_ascii_word: npt.NDArray[np.bool_]
    pairs: HanPairs | None

    dropped: int = _DROPPED
    han: int = _HAN
    blank: int = _BLANK
    other: int = _OTHER


def find_cuts(backend: Backend) -> Cuts | str:
    """Return the rules for a tokenizer, or why there are none.

    They exist for BERT's WordPiece and for byte-level BPE cut as by GPT-2, the latter also with runs of Han characters apart.
    """
    parts = json.loads(backend.to_str())
    if any(not token["special"] for token in parts["added_tokens"]):
        return "it has added words, which are found anywhere in a text"
    if parts["truncation"] or parts["padding"]:
        return "it cuts or pads texts"
    model, before, cutter = parts["model"], parts["normalizer"], parts["pre_tokenizer"]
    if model["type"] == "WordPiece":
        if _kind(before) != "BertNormalizer" or _kind(cutter) != "BertPreTokenizer":
            return "it is a WordPiece, but normalises or cuts text unlike BERT"
        if not before["handle_chinese_chars"]:
            return "it is a WordPiece that does not set Han characters apart"
        return _wordpiece_cuts()
    if model["type"] == "BPE":
        return _bpe_cuts(model, before, cutter)
    return f"its kind is {model['type']}"


def _kind(part: Any) -> str:
    return str(part["type"]) if part else ""


def _wordpiece_cuts() -> Cuts:
    """Cut at blanks, and on both sides of punctuation and of Han characters: BERT makes each a word.

    Every normalisation of BERT works on characters one by one, or moves combining marks, which are among the others.
    """
    ascii_classes = _ascii_classes()
    ascii_classes[ord(" ")] = _DROPPED
    ascii_classes[ascii_classes == _DIGIT] = _WORD
    ascii_classes[ascii_classes == _APOSTROPHE] = _PUNCTUATION
    alone = {_DROPPED, _PUNCTUATION, _WIDE, _HAN}

    def is_cut(left: int, right: int) -> bool:
        return (left in alone or right in alone) and not left == right == _DROPPED

    return Cuts(
        ascii_classes,
        _character_classes(ascii_classes),
        _rule(is_cut),
        " ",
        is_plain=np.ones(16, np.bool_),
        is_ascii_word=_among(_WORD),
        pairs=None,
    )


def _bpe_cuts(model: dict[str, Any], before: Any, cutter: Any) -> Cuts | str:
    """Cut before blanks, and between letters, digits and punctuation, as GPT-2's expression does.

    Not beside an apostrophe (it may begin 's or 're), nor after a blank, which goes to what follows.
    """
    if before is not None and _kind(before) != "Lowercase":
        return f"it is a BPE that normalises text ({_kind(before)})"
    if model["dropout"] or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return "it is a BPE with dropout, prefixes or suffixes"
    steps = cutter["pretokenizers"] if _kind(cutter) == "Sequence" else [cutter]
    is_apart = len(steps) == 2 and _is_han_split(steps[0])
    last = steps[-1]
    if not (len(steps) == 1 or is_apart) or _kind(last) != "ByteLevel":
        return "it is a BPE that cuts text unlike GPT-2"
    if last["add_prefix_space"] or not last["use_regex"]:
        return "it is a BPE that cuts text unlike GPT-2"
    alphabet = byte_alphabet()
    if not alphabet.keys() <= model["vocab"].keys():
        return "it is a BPE that lacks tokens for some bytes"
    ascii_classes = _ascii_classes()
    # The same expression takes all punctuation; Han characters are letters where they are not set apart.
    same = {_WIDE: _PUNCTUATION} if is_apart else {_WIDE: _PUNCTUATION, _HAN: _WORD}
    known = {_WORD, _DIGIT, _PUNCTUATION}

    def is_cut(left: int, right: int) -> bool:
        if left == right == _DROPPED:
            return False
        if _DROPPED in (left, right):
            return True
        if is_apart and _HAN in (left, right):
            return left != right and _OTHER not in (left, right)  # a young Han character would be of the run
        left, right = same.get(left, left), same.get(right, right)
        if right == _BLANK:
            return left in known or left == _APOSTROPHE
        return left in known and right in known and left != right

    return Cuts(
        ascii_classes,
        _character_classes(ascii_classes),
        _rule(is_cut),
        "\n",
        is_plain=_among(_WORD, _DIGIT, _PUNCTUATION, _APOSTROPHE, _WIDE, _WIDE + 1, _HAN, _HAN + 1),
        is_ascii_word=_among(_WORD, _DIGIT),
        pairs=han_pairs(model["vocab"], alphabet),
    )


def _among(*kinds: int) -> npt.NDArray[np.bool_]:
    table = np.zeros(16, np.bool_)
    table[list(kinds)] = True
    return table


def _ascii_classes() -> UInt8s:
    table = np.full(256, _OTHER, np.uint8)
    table[0x80:] = _OTHER + 1
    for code in range(0x21, 0x7F):
        character = chr(code)
        table[code] = _WORD if character.isalpha() else _DIGIT if character.isdigit() else _PUNCTUATION
    table[ord("'")] = _APOSTROPHE
    table[ord(" ")] = _BLANK
    return table


def _character_classes(ascii_classes: UInt8s) -> UInt8s:
    table = np.full(0x110000, _OTHER, np.uint8)
    table[:128] = ascii_classes[:128]
    for first, last in _OLD_HAN:
        table[first : last + 1] = _HAN
    # General punctuation, CJK punctuation and full-width forms: old blocks, on whose categories all agree.
    for code in (
        *range(0x2010, 0x2028),
        *range(0x2030, 0x205F),
        *range(0x3001, 0x3020),
        *range(0xFF01, 0xFF66),
    ):
        if unicodedata.category(chr(code)).startswith("P"):
            table[code] = _WIDE
    return table


def _rule(is_cut: Callable[[int, int], bool]) -> UInt8s:
    """Write the rule for all pairs of classes; nothing is cut before a byte that continues a character."""
    table = np.zeros(256, np.uint8)
    first = {_WIDE + 1: _WIDE, _HAN + 1: _HAN, _OTHER + 1: _OTHER}
    for left in range(_NUM_CLASSES):
        for right in range(_NUM_CLASSES):
            if right not in first and is_cut(first.get(left, left), right):
                table[left << 4 | right] = (right != _DROPPED) | (left != _DROPPED) << 1
    return table


def _is_han_split(step: dict[str, Any]) -> bool:
    """Say whether a step is the one our BPE is learned with."""
    ranges = HAN.encode("ascii").decode("unicode_escape")
    return (
        _kind(step) == "Split"
        and step["pattern"] == {"Regex": f"[{ranges}]+"}
        and step["behavior"] == "Isolated"
        and not step["invert"]
    )
