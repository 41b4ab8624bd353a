from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from seedbed.tokenizer import lookup
from seedbed.tokenizer.cuts import Cuts, find_cuts
from seedbed.tokenizer.lookup import LookupEncoder
from seedbed.tokenizer.spans import Tokens
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.words import WordEncoder, open_words

Learn = Callable[..., Tokenizer]

FRAGMENTS = [
    *"abAB19 .,!?'\"-—“”[]#中国人天下，。！？「𠀀㐀\ufaee\u9fff🙂éßİﬁΣ가ガｘ５\u0301\u200b\u200d\ufe0f\u00a0\u3000\t\r\n\x00\x1f\x85",
    *(
        "the",
        " river",
        "walking",
        "don't",
        "'ll",
        "中国人民",
        "天下大势",
        "分久必合",
        "  ",
        "👩\u200d🚀",
        "e\u0301",
    ),
    *("[MASK]", "[SEP]", "[UNK]", "##ing", "</s>", "conderti" * 3, "مرحبا", "ภาษา", "हिन्दी"),
]
TEXT = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), max_size=24).map("".join)
SETTINGS = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KINDS = ["wordpiece", "wordpiece cased", "bpe", "bpe lowercase", "bpe of GPT-2"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, learn: Learn) -> Tokenizer:
    algorithm, _, kind = request.param.partition(" ")
    made = learn(algorithm, vocab_size=700, lowercase=kind == "lowercase" or request.param == "wordpiece")
    if kind == "of GPT-2":  # Han characters not apart
        parts = json.loads(made.backend.to_str())
        parts["pre_tokenizer"] = parts["pre_tokenizer"]["pretokenizers"][1]
        made = Tokenizer(Backend.from_str(json.dumps(parts)))
    return made


@pytest.fixture(scope="module", params=["tokenizer", "tokie"])
def helper(request: pytest.FixtureRequest) -> str:
    """What encodes words that are met for the first time."""
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer, helper: str) -> LookupEncoder:
    """One for all tests of a tokenizer, so that most parts are looked up."""
    return make(tokenizer, helper)


def make(tokenizer: Tokenizer, helper: str = "tokenizer") -> LookupEncoder:
    cuts = find_cuts(tokenizer.plain_backend)
    assert isinstance(cuts, Cuts)
    words = open_words(tokenizer.plain_backend, cuts) if helper == "tokie" else None
    assert (words is None) == (helper == "tokenizer")
    return LookupEncoder(tokenizer.plain_backend, cuts, words)


def assert_same(tokenizer: Tokenizer, fast: Tokens, texts: list[str]) -> None:
    slow = tokenizer.encode_spans(texts).tokens(texts)
    assert fast.counts.tolist() == slow.counts.tolist()
    assert fast.ids.tolist() == slow.ids.tolist()
    assert fast.ids.dtype == slow.ids.dtype
    assert fast.begins.tolist() == slow.begins.tolist()
    assert fast.on_han.tolist() == slow.on_han.tolist()
    places = np.arange(sum(map(len, texts)) + len(texts), dtype=np.int64)
    assert fast.at(places).tolist() == slow.at(places).tolist()
    for place in places[
        :: max(1, len(places) // 7)
    ]:  # alone, since a place without a token leaves no trace among others
        assert fast.at(places[place : place + 1]).tolist() == slow.at(places[place : place + 1]).tolist()


@SETTINGS
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_tokens_are_those_of_the_tokenizer(
    tokenizer: Tokenizer, encoder: LookupEncoder, texts: list[str]
) -> None:
    assert_same(tokenizer, encoder.encode(texts), texts)


def test_lines_of_the_corpus_first_and_again(tokenizer: Tokenizer, helper: str, lines: list[str]) -> None:
    encoder = make(tokenizer, helper)
    for _ in range(2):
        assert_same(tokenizer, encoder.encode(lines), lines)
    both = [line[::-1] for line in lines] + lines
    assert_same(tokenizer, encoder.encode(both), both)


def test_words_are_not_left_to_the_tokenizer(
    tokenizer: Tokenizer, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing is gained, and nobody sees it."""
    shares = []
    plain = WordEncoder.encode

    def encode(self, names, parts, places):
        found = plain(self, names, parts, places)
        shares.append(found.is_done.mean())
        return found

    monkeypatch.setattr(WordEncoder, "encode", encode)
    make(tokenizer, "tokie").encode([line for line in lines if line.isascii()])
    assert shares[0] > 0.6


def test_odd_texts(tokenizer: Tokenizer, encoder: LookupEncoder) -> None:
    fifteen = "abcdefghijklmno"
    texts = [
        "",
        " ",
        "\n",
        *(fifteen[:n] for n in (1, 14, 15)),
        *(fifteen + tail for tail in ("p", "q", "pq", "p" * 300, "p" * 86)),  # alike in the first 15 bytes
        *("a\0", "a", "a\0\0", "\0", "a b\0c"),
        "x" * 70_000,
        "中" * 3000 + "国",
        "人民中国" * 500 + "x" * 101,
        "a" * 100 + " " + "a" * 101,
        "[MASK] x[SEP]天下[unused1] [PAD]",
        "".join(map(chr, range(0x20, 0x3000, 7))),
        "",
    ]
    for text in texts:
        assert_same(tokenizer, encoder.encode([text]), [text])
    assert_same(tokenizer, encoder.encode(texts), texts)
    assert len(encoder.encode([]).ids) == 0


def test_parts_are_learned_as_if_alone(learn: Learn) -> None:
    """Also with tokens that would join a part to the newline between those that are encoded together."""
    parts = json.loads(learn("bpe").backend.to_str())
    for pair in (["Ċ", "Ġ"], ["Ġ", "Ċ"], ["Ċ", "Ċ"], ["Ċ", "Ġa"], ["Ċ", "a"]):
        parts["model"]["vocab"].setdefault(pair[1], len(parts["model"]["vocab"]))
        parts["model"]["vocab"]["".join(pair)] = len(parts["model"]["vocab"])
        parts["model"]["merges"].append(pair)
    tokenizer = Tokenizer(Backend.from_str(json.dumps(parts)))
    texts = [
        "b",
        "x  y",
        "c 中",
        "d\n",
        "\n a",
        "e  ",
        " a",
        "a",
        "  a",
        "'s",
        " ",
        "\u00a0a",
        "f\u00a0 g",
        "b a",
    ]
    for order in (texts, texts[::-1], [text for text in texts for _ in range(2)]):
        assert_same(tokenizer, make(tokenizer).encode(order), order)


def test_the_table_is_bounded_and_begun_anew(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_MAX_PARTS", 300)
    draw = random.Random(0)
    encoder = make(tokenizer)
    tables = set()
    for _ in range(12):
        texts = [" ".join("".join(draw.choices("abcde", k=5)) for _ in range(40)) for _ in range(3)]
        assert_same(tokenizer, encoder.encode(texts), texts)
        tables.add(id(encoder._table))
        assert len(encoder._table.counts.values) <= 300 + 3 * 40
    assert len(tables) > 1
    monkeypatch.setattr(lookup, "_MAX_BYTES", 1000)
    for length in range(200, 230):
        encoder.encode(["é" * length])
    assert len(encoder._table._long) < 5


def test_threads_share_a_table(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    original = lookup._Column.extend

    def slow(self: lookup._Column, values: np.ndarray) -> None:
        original(self, values)
        time.sleep(0.0002)  # another thread takes over wherever it may

    monkeypatch.setattr(lookup._Column, "extend", slow)
    draw = random.Random(1)
    batches = [
        ["".join(draw.choices([*FRAGMENTS[:40], " ", "the ", "中国"], k=60)) for _ in range(10)]
        for _ in range(16)
    ]
    encoder = make(tokenizer)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(encoder.encode, batches))
    for tokens, texts in zip(found, batches, strict=True):
        assert_same(tokenizer, tokens, texts)
