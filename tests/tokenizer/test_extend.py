"""Extended vocabularies: old ids stay, other texts are cut as before, new words are one token, transformers agrees."""

from __future__ import annotations

import random

import pytest

from seedbed.errors import DataError, IncompatibleError
from seedbed.tokenizer.extend import extend, is_extension, pieces_of_new, propose, table
from seedbed.tokenizer.learn import ALGORITHMS
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

COMMON = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "he",
    "for",
    "it",
    "with",
    "as",
    "his",
    "on",
    "be",
    "at",
    "by",
    "had",
    "not",
    "are",
    "but",
    "from",
    "or",
    "have",
]
OLD_HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏我们研究的结构，细，胞，膜"
NEW = ["mitochondria", "Angioplasty", "stenosis", "café"]


def lines(words, count=200, seed=0):
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(words, k=8)) + "." for _ in range(count)]


OLD_TEXT = [*lines([*COMMON, "caf", "plasty", "angio", "é", "mito"]), *[OLD_HAN] * 5]
NEW_TEXT = [*lines([*COMMON, *NEW, *["stenosis"] * 3], seed=1), *["我们研究细胞膜的结构。细胞膜很薄。"] * 40]


def learned(algorithm, *, lowercase=True):
    backend = ALGORITHMS[algorithm](
        [*OLD_TEXT, "abcdefghijklmnopqrstuvwxyz很薄 ABCDEFGHIJKLMNOPQRSTUVWXYZ"] * 3,
        vocab_size=620,
        special=special_tokens(4),
        lowercase=lowercase,
        min_frequency=2,
        coverage=1.0,
    )
    return Tokenizer(backend)


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "bpe_cased"])
def extended(request):
    old = learned(request.param.removesuffix("_cased"), lowercase=not request.param.endswith("cased"))
    proposals = propose(old, NEW_TEXT, num_tokens=200, min_count=20)
    return old, proposals, extend(old, proposals, num_tokens=200)


def test_every_old_id_stays(extended):
    old, _, new = extended
    assert new.vocab_size > old.vocab_size
    assert all(new.token(i) == old.token(i) for i in range(old.vocab_size))
    assert new.special_ids == old.special_ids
    assert (new.mask_id, new.pad_id, new.separator_id) == (old.mask_id, old.pad_id, old.separator_id)
    assert is_extension(new, old)
    assert not is_extension(old, new)


def test_texts_without_new_words_are_cut_as_before(extended):
    old, _, new = extended
    for text in [
        *OLD_TEXT[:50],
        "天地玄黄，宇宙洪荒。日月盈昃",
        "the xylophone of zzyzx, and (it)",
        "[MASK] a",
        "",
    ]:
        assert new.encode(text) == old.encode(text), text


def test_new_words_are_one_token_and_read_back(extended):
    old, proposals, new = extended
    assert old.encode("the stenosis of") != new.encode("the stenosis of")
    assert len(new.encode("the stenosis of")) == 3
    assert len(new.encode("细胞膜")) < len(old.encode("细胞膜"))
    for text in ("the stenosis of mitochondria.", "我们研究细胞膜的结构"):
        assert new.decode(new.encode(text)) == old.decode(old.encode(text)) == text
        assert len(new.encode(text)) < len(old.encode(text))
    # What goes on behind a new word is no unknown.
    assert new.unk_id not in new.encode("stenosises mitochondrial café")
    assert proposals == sorted(proposals, key=lambda p: (-p.saved, p.word))


def test_words_are_marked_where_they_were(extended):
    """The store's word marks come from pre-tokens and character spans: an added token must have both."""
    old, _, new = extended
    text = "the stenosis, 细胞膜 of"
    spans = new.encode_spans([text])
    covered = [text[a:b].strip() for a, b in zip(spans.starts, spans.ends, strict=True)]
    assert "".join(covered) == text.replace(" ", "")
    assert sorted(spans.pretokens) == list(spans.pretokens)
    assert spans.counts.sum() < old.encode_spans([text]).counts.sum()


def test_the_report_lists_what_is_one_token_now(extended):
    old, proposals, new = extended
    rows = table(new, old, proposals)
    assert {"stenosis", "mitochondria"} <= {row["word"] for row in rows}
    for row in rows:
        assert new.token_id(row["token"]) >= old.vocab_size
        assert row["saved"] == row["count"] * (len(row["before"]) - 1)
    assert {"the", "of"}.isdisjoint(row["token"] for row in rows)


def test_pieces_of_new_tokens_are_old_and_spell_them(extended):
    old, _, new = extended
    pieces = pieces_of_new(new, old)
    assert sorted(pieces) == list(range(old.vocab_size, new.vocab_size))
    for token_id, ids in pieces.items():
        assert max(ids) < old.vocab_size
        assert len(ids) > 1
        spelled = "".join(old.token(i).removeprefix("##") for i in ids)
        assert spelled == new.token(token_id)


def test_the_folder_opens_in_transformers_with_the_same_ids(extended, tmp_path):
    from transformers import AutoTokenizer

    _, _, new = extended
    new.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.digest == new.digest
    for text in [*OLD_TEXT[:10], *NEW_TEXT[:10], NEW_TEXT[-1], "Stenosis细胞膜stenosis"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == new.encode(text) == again.encode(text)
    assert len(theirs) == new.vocab_size


def test_no_more_tokens_than_asked_for(extended):
    old, proposals, _ = extended
    for count in (1, 5):
        try:
            assert extend(old, proposals, num_tokens=count).vocab_size <= old.vocab_size + count
        except DataError:
            assert count == 1  # no word of BPE is built by one merge


def test_extending_twice_keeps_the_first(extended):
    old, _, new = extended
    more = propose(new, ["thrombosis and thrombosis"] * 30, num_tokens=20, min_count=10)
    twice = extend(new, more, num_tokens=20)
    assert is_extension(twice, new)
    assert is_extension(twice, old)
    assert len(twice.encode("the thrombosis")) == 2


def test_a_chinese_word_added_first_keeps_its_id(extended):
    old, _, new = extended
    before = new.encode("细胞膜")
    twice = extend(new, propose(new, ["embolism and"] * 30, num_tokens=20, min_count=10), num_tokens=20)
    assert twice.encode("细胞膜") == before
    assert twice.vocab_size > new.vocab_size > old.vocab_size


def test_what_cannot_be_exact_is_refused():
    unigram = learned("unigram")
    with pytest.raises(IncompatibleError, match="unigram") as refused:
        propose(unigram, NEW_TEXT, num_tokens=10, min_count=2)
    assert "WordPiece" in refused.value.hint
    old = learned("wordpiece")
    with pytest.raises(DataError, match="no word of the text"):
        extend(old, propose(old, ["the of and"] * 30, num_tokens=10, min_count=2), num_tokens=10)
