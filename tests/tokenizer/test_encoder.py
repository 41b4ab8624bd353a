from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import numpy as np
import pytest

from seedbed.tokenizer import encoder as encoder_module
from seedbed.tokenizer.cuts import Cuts, find_cuts
from seedbed.tokenizer.encoder import LookupDiffersError, TextEncoder
from seedbed.tokenizer.lookup import LookupEncoder
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.words import WordEncoder

Learn = Callable[..., Tokenizer]


def test_it_says_how_it_encodes_and_why(learned: Tokenizer, lines: list[str]) -> None:
    encoder = TextEncoder(learned)
    tokens = encoder.encode(lines)
    assert tokens.ids.tolist() == learned.encode_spans(lines).ids.tolist()
    if learned.algorithm == "unigram":
        assert encoder.report() == {"name": "tokenizer", "reason": "its kind is Unigram"}
        assert encoder.num_threads == 1
    else:
        assert encoder.reason is None
        half = sum(map(len, lines[len(lines) // 2 :]))
        assert encoder.report() == {"name": "lookup", "new_words": "tokie", "compared_characters": half}
    assert TextEncoder(learned, lookup=False).report() == {"name": "tokenizer", "reason": "as asked for"}


def test_where_tokie_is_missing_or_differs_it_is_left_out(
    learn: Learn, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    tokenizer = learn("bpe", vocab_size=700)
    expected = tokenizer.encode_spans(lines).ids.tolist()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokie", None)
        encoder = TextEncoder(tokenizer)
        assert encoder.report()["new_words"] == "tokenizer"
        assert encoder.encode(lines).ids.tolist() == expected
    plain = WordEncoder.encode

    def wrong(self, names, parts, places):
        found = plain(self, names, parts, places)
        return dataclasses.replace(found, ids=(found.ids + (found.ids > 300)).astype(np.int32))

    monkeypatch.setattr(WordEncoder, "encode", wrong)
    encoder = TextEncoder(tokenizer)
    assert encoder.report()["name"] == "lookup"
    assert encoder.report()["new_words"] == "tokenizer"
    assert encoder.encode(lines).ids.tolist() == expected


def test_the_share_that_is_compared_is_bounded(learn: Learn) -> None:
    encoder = TextEncoder(learn("wordpiece"))
    texts = ["the river and the house " * 20] * 100
    encoder.encode(texts)
    first = encoder.num_compared
    encoder.encode(texts)
    assert 0 < encoder.num_compared - first <= encoder_module._COMPARED_CHARACTERS + len(texts[0])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a", "b"),
        ("中", "国"),
        (".", "'"),
        ("a", "é"),
        ("é", "a"),
        ("1", "2"),
        ("🙂", "\u200d"),
        (" ", "'"),
        ("'", "s"),
    ],
)
def test_a_wrong_rule_is_found_before_the_first_text(
    learn: Learn, monkeypatch: pytest.MonkeyPatch, left: str, right: str, lines: list[str]
) -> None:
    """Cut where the tokenizer does not, or mark as a pre-token what is none."""
    tokenizer = learn("bpe", vocab_size=700)
    cuts = find_cuts(tokenizer.plain_backend)
    assert isinstance(cuts, Cuts)
    assert TextEncoder(tokenizer).reason is None
    rule = cuts.rule.copy()
    classes = cuts.characters[[ord(left), ord(right)]]
    # Behind a character of several bytes stands the class of its last byte.
    last = classes[0] + (len(left.encode()) > 1)
    assert not rule[last << 4 | classes[1]]
    rule[last << 4 | classes[1]] = 3
    monkeypatch.setattr(encoder_module, "find_cuts", lambda _: dataclasses.replace(cuts, rule=rule))
    encoder = TextEncoder(tokenizer)
    assert encoder.reason is not None
    assert "differs" in encoder.reason
    assert encoder.report()["name"] == "tokenizer"
    assert encoder.encode(lines).ids.tolist() == tokenizer.encode_spans(lines).ids.tolist()


@pytest.mark.parametrize("what", ["ids", "begins", "on_han", "counts"])
def test_a_difference_in_a_compared_text_raises(
    learn: Learn, monkeypatch: pytest.MonkeyPatch, what: str, lines: list[str]
) -> None:
    encoder = TextEncoder(learn("wordpiece"))
    original = LookupEncoder.encode

    def failing(self: LookupEncoder, texts: list[str]) -> object:
        tokens = original(self, texts)
        values = getattr(tokens, what)
        values[-1] = ~values[-1] if values.dtype == np.bool_ else values[-1] + 1
        return tokens

    monkeypatch.setattr(LookupEncoder, "encode", failing)
    with pytest.raises(LookupDiffersError, match="other tokens"):
        encoder.encode(lines)
