"""Normalisation: idempotent, one space for any white space, nothing invisible left."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seedbed.corpus.normalize import UnicodeForm, normalizer

_SURROGATES = ("Cs",)
_odd = st.sampled_from(
    "\u3000\u00a0\u2028\u2029\x85\x0b\x0c\x1c\x1f\u200b\u200c\u200d\ufeff\u00ad\u202e\u2066\u0301\u00a8\u00b4\u1fbf \t\r"
)
_lines = st.text(st.one_of(_odd, st.characters(blacklist_categories=_SURROGATES)), max_size=40)
_forms = st.sampled_from(["NFC", "NFKC", "none"])


@given(_lines, _forms)
@example("x \u00a8", "NFKC")
@example("e\u200b\u0301", "NFC")
@example("\u200b \u200b", "NFC")
def test_twice_is_once(line: str, form: UnicodeForm) -> None:
    normalize = normalizer(form)
    once = normalize(line)
    assert normalize(once) == once
    assert "  " not in once
    assert once == once.strip()
    if form != "none":
        assert unicodedata.is_normalized(form, once)


def test_every_white_space_becomes_one_space_and_no_control_is_left() -> None:
    normalize = normalizer("NFC")
    spaces = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()]
    assert len(spaces) >= 25
    for space in spaces:
        assert normalize(f"{space}a{space}{space}b{space}") == "a b", f"U+{ord(space):04X}"
    controls = [
        c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Cc" and not c.isspace()
    ]
    assert normalize("a" + "".join(controls) + "b") == "ab"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\u3000\u3000话说天下大势，分久必合。", "话说天下大势，分久必合。"),
        ("周末\u3000七国", "周末 七国"),
        ("\ufeffword", "word"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # the non-joiner is spelling in Persian
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("\u202eabc\u202c \u200fdef", "abc def"),
        ("cafe\u0301", "caf\u00e9"),
        ("，１", "，１"),
        (" \t ", ""),
        ("\u200b", ""),
        ("plain text", "plain text"),
    ],
)
def test_nfc_examples(raw: str, clean: str) -> None:
    assert normalizer("NFC")(raw) == clean


def test_nfkc_widens_what_is_united() -> None:
    assert normalizer("NFKC")("，１ ﬁ") == ",1 fi"
    assert normalizer("none")("cafe\u0301") == "cafe\u0301"
