from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from seedbed.artifact import Artifact, open_verified, publish
from seedbed.data import store as store_module
from seedbed.data import writer as writer_module
from seedbed.data.store import (
    DOCUMENT,
    LINE,
    SENTENCE,
    SPECIAL,
    WORD,
    SplitTokens,
    TokensConfig,
    TokenStore,
    build_store,
    check_tokenizer,
)
from seedbed.document import Document
from seedbed.errors import IncompatibleError, IntegrityError
from seedbed.tokenizer.learn import ALGORITHMS
from seedbed.tokenizer.lookup import LookupEncoder
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

WORDS = [
    "the",
    "river",
    "ran.",
    "She",
    "said",
    "so!",
    "“Why?”",
    "中国人民",
    "天气很好。",
    "我们去",
    "北京",
    "éé",
    "🙂",
    "[SEP]",
    "[MASK]",
    "3.5",
    "５％",
    "\u200b",
    "A",
    "don't",
    "𠀀",
]


def make_documents(count: int = 40, seed: int = 0) -> list[Document]:
    """Documents of odd text; some lines are empty, some hold nothing a tokenizer keeps, sources come and go."""
    draw = random.Random(seed)
    documents = []
    for number in range(count):
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 5))]
        if draw.random() < 0.2:
            lines.insert(draw.randint(0, len(lines)), draw.choice(["", " ", "\u200b"]))
        first = draw.randint(1, 10_000)
        numbers = [first + 3 * i for i in range(len(lines))]
        documents.append(Document("\n".join(lines), f"file-{number // 7 % 3}.txt", tuple(numbers)))
    return documents


def learn(algorithm: str) -> Tokenizer:
    backend = ALGORITHMS[algorithm](
        [line for document in make_documents() for line in document.text.split("\n") if line.strip()] * 3,
        vocab_size=330,
        special=special_tokens(2),
        lowercase=algorithm == "wordpiece",
        min_frequency=1,
        coverage=1.0,
    )
    return Tokenizer(backend)


@pytest.fixture(scope="module", params=list(ALGORITHMS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return learn(request.param)


def save(tokenizer: Tokenizer, folder: Path) -> Artifact:
    with publish(folder, stage="tokenizer", version=1) as draft:
        tokenizer.save(draft.path)
    return open_verified(folder)


def build(
    folder: Path,
    tokenizer: Tokenizer,
    documents: list[Document],
    validation: list[Document] | None = None,
    lookup: bool = True,
    **config: object,
) -> Artifact:
    """Build a store without a corpus stage."""
    splits = {"train": documents, "validation": validation or [], "test": []}

    def given(artifact: Artifact, split: str) -> Iterator[Document]:
        return iter(splits[split])

    folder.mkdir()
    with publish(folder / "c", stage="corpus", version=1):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "iter_documents", given)
        return build_store(
            TokensConfig.model_validate(config),
            open_verified(folder / "c"),
            save(tokenizer, folder / "t"),
            folder,
            lookup=lookup,
        )


def expected_pieces(tokenizer: Tokenizer, document: Document) -> list[tuple[int, list[int]]]:
    """Return (line number, ids) of the lines of a document that have tokens."""
    lines = document.text.split("\n")
    end = "\n" if tokenizer.keeps_newlines else ""
    encoded = [tokenizer.encode(line + end) for line in lines[:-1]] + [tokenizer.encode(lines[-1])]
    return [(n, ids) for n, ids in zip(document.line_numbers, encoded, strict=True) if ids]


def read_all(split: SplitTokens) -> tuple[np.ndarray, np.ndarray]:
    return split.slice(0, split.num_tokens)


def test_every_token_leads_back_to_its_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = make_documents()
    split = TokenStore.open(build(tmp_path / "run", tokenizer, documents, shard_tokens=64)).split("train")
    ids, marks = read_all(split)
    at = 0
    for document in documents:
        pieces = expected_pieces(tokenizer, document)
        assert pieces, "the test's own documents have text"
        for index, (number, line_ids) in enumerate(pieces):
            assert ids[at : at + len(line_ids)].tolist() == line_ids
            assert marks[at] & LINE
            assert bool(marks[at] & DOCUMENT) == (index == 0)
            assert marks[at] & SENTENCE
            assert marks[at] & WORD
            assert not (marks[at + 1 : at + len(line_ids)] & (LINE | DOCUMENT)).any()
            assert {split.trace(i) for i in range(at, at + len(line_ids))} == {(document.source, number)}
            at += len(line_ids)
        assert ids[at] == tokenizer.separator_id
        assert marks[at] == SPECIAL | SENTENCE | WORD
        assert split.trace(at) == (document.source, pieces[-1][0])
        at += 1
    assert at == split.num_tokens
    with pytest.raises(IndexError):
        split.trace(at)


def test_text_comes_back_from_a_byte_level_store(tmp_path: Path) -> None:
    tokenizer, documents = learn("bpe"), make_documents()
    split = TokenStore.open(build(tmp_path / "run", tokenizer, documents)).split("train")
    starts = [*split.document_starts().tolist(), split.num_tokens]
    texts = [tokenizer.decode(split.tokens(a, b).tolist()) for a, b in itertools.pairwise(starts)]
    assert texts == [document.text for document in documents]


def test_only_separators_are_special_whatever_the_text_says(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [Document("[SEP] [MASK] [PAD] </s>", "a", (1,)), Document("[SEP]", "a", (2,))]
    split = TokenStore.open(build(tmp_path / "run", tokenizer, documents)).split("train")
    ids, marks = read_all(split)
    special = np.isin(ids, sorted(tokenizer.special_ids - {tokenizer.unk_id}))
    assert np.flatnonzero(special).tolist() == (np.append(split.document_starts()[1:], len(ids)) - 1).tolist()
    assert (special == ((marks & SPECIAL) != 0)).all()


def test_counts_are_those_of_the_arrays(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [*make_documents(), Document(" \u200b\n", "empty.txt", (1, 2))]
    artifact = build(tmp_path / "run", tokenizer, documents, make_documents(5, seed=1))
    store = TokenStore.open(artifact)
    for name, texts in (("train", documents), ("validation", make_documents(5, seed=1))):
        split = store.split(name)
        ids, marks = read_all(split)
        kept = [document for document in texts if expected_pieces(tokenizer, document)]
        is_text = (marks & SPECIAL) == 0
        assert split.num_documents == len(kept) == np.count_nonzero(marks & DOCUMENT)
        assert split.counts["empty"] == len(texts) - len(kept)
        assert split.num_bytes == sum(len(document.text.encode()) for document in kept)
        assert split.document_bytes().tolist() == [len(document.text.encode()) for document in kept]
        assert split.counts["lines"] == np.count_nonzero(marks & LINE)
        assert split.counts["words"] == np.count_nonzero((marks & WORD) * is_text)
        assert split.counts["sentences"] == np.count_nonzero((marks & SENTENCE) * is_text)
        assert split.counts["unknown"] == np.count_nonzero(ids == tokenizer.unk_id)
        assert split.token_counts().tolist() == np.bincount(ids, minlength=tokenizer.vocab_size).tolist()
        assert split.document_starts().tolist() == np.flatnonzero(marks & DOCUMENT).tolist()
    assert artifact.counts["splits"]["train"]["tokens"] == store.split("train").num_tokens
    test = store.split("test")
    assert (test.num_tokens, test.num_documents, len(test.document_starts())) == (0, 0, 0)
    assert test.token_counts().sum() == 0


def test_gather_across_shards_and_past_the_end(tmp_path: Path) -> None:
    tokenizer, documents = learn("wordpiece"), make_documents()
    whole = TokenStore.open(build(tmp_path / "whole", tokenizer, documents)).split("train")
    cut = TokenStore.open(build(tmp_path / "cut", tokenizer, documents, shard_tokens=16)).split("train")
    assert len([name for name in cut._artifact.files if name.endswith(".ids.bin")]) == -(
        -whole.num_tokens // 16
    )
    ids, marks = read_all(whole)
    assert (read_all(cut)[0] == ids).all()
    assert (read_all(cut)[1] == marks).all()
    size = len(ids)
    starts = np.array([0, 1, 15, 16, 17, 40, size - 5, size - 1, size, size + 9, 3, 0])
    for length in (1, 5, 16, 40):
        for split in (whole, cut):
            got_ids, got_marks, valid = split.gather(starts, length)
            assert (got_ids.dtype, got_marks.dtype, valid.dtype) == (np.int32, np.uint8, np.int64)
            for row, start in enumerate(starts.tolist()):
                count = max(0, min(length, size - start))
                assert valid[row] == count
                assert got_ids[row].tolist() == [
                    *ids[start : start + length].tolist(),
                    *[0] * (length - count),
                ]
                assert got_marks[row].tolist() == [
                    *marks[start : start + length].tolist(),
                    *[0] * (length - count),
                ]
    assert cut.gather(np.empty(0, np.int64), 4)[0].shape == (0, 4)
    assert (cut.token_counts() == whole.token_counts()).all()


def test_bytes_do_not_depend_on_batches_threads_or_place(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(tmp_path / "a", tokenizer, make_documents())
    monkeypatch.setattr(writer_module, "_BATCH_CHARACTERS", 7)
    second = build(tmp_path / "b", tokenizer, make_documents())
    assert first.digest == second.digest


SPECIAL_TEXT = Document("[SEP]x[MASK] [CLS]中国[UNK]\n[unused0]</s> ##ing 北京's [PAD", "special.txt", (3, 9))


def test_bytes_are_the_same_with_and_without_looking_up(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [
        *make_documents(60),
        SPECIAL_TEXT,
        Document(" \u200b\n", "empty.txt", (1, 2)),
        *make_documents(9, seed=5),
    ]
    with_lookup = build(tmp_path / "a", tokenizer, documents)
    without = build(tmp_path / "b", tokenizer, documents, lookup=False)
    assert with_lookup.digest == without.digest
    assert without.counts["encoder"] == {"name": "tokenizer", "reason": "as asked for"}
    if tokenizer.algorithm == "unigram":
        assert with_lookup.counts["encoder"] == {"name": "tokenizer", "reason": "its kind is Unigram"}
    else:
        assert with_lookup.counts["encoder"]["name"] == "lookup"
        assert with_lookup.counts["encoder"]["compared_characters"] > 1000


@pytest.mark.parametrize("words", ["segmenter", "pretokens"])
@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_bytes_are_the_same_for_small_batches_and_either_source_of_words(
    algorithm: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_BATCH_CHARACTERS", 50)
    tokenizer = learn(algorithm)
    documents = [*make_documents(30, seed=2), SPECIAL_TEXT]
    digests = {
        build(tmp_path / str(lookup), tokenizer, documents, lookup=lookup, words=words).digest
        for lookup in (True, False)
    }
    assert len(digests) == 1


def test_a_difference_found_on_the_way_is_told_and_all_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer_module, "_BATCH_CHARACTERS", 500)
    tokenizer, documents = learn("wordpiece"), make_documents(60)
    right = build(tmp_path / "right", tokenizer, documents, lookup=False, shard_tokens=64)
    original = LookupEncoder.encode
    wrong = tokenizer.token_id("said")
    calls = 0

    def failing(self: LookupEncoder, texts: list[str]) -> object:
        nonlocal calls
        calls += 1
        tokens = original(self, texts)
        if calls > 8:
            tokens.ids[tokens.ids == wrong] = 7
        return tokens

    monkeypatch.setattr(LookupEncoder, "encode", failing)
    with caplog.at_level("WARNING"):
        found = build(tmp_path / "found", tokenizer, documents, shard_tokens=64)
    assert calls > 9, "some batches were written before"
    assert found.digest == right.digest
    assert found.counts["encoder"]["name"] == "tokenizer"
    assert "other tokens than the tokenizer" in found.counts["encoder"]["reason"]
    assert "encoded anew" in caplog.text


def test_documents_are_written_as_they_come_not_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is pending is bounded, however many documents there are."""
    monkeypatch.setattr(writer_module, "_BATCH_CHARACTERS", 200)
    largest = 0
    original = writer_module.SplitWriter.add

    def watched(self: writer_module.SplitWriter, document: Document) -> None:
        nonlocal largest
        original(self, document)
        largest = max(largest, self._pending_characters)

    monkeypatch.setattr(writer_module.SplitWriter, "add", watched)
    build(tmp_path / "run", learn("wordpiece"), make_documents(100))
    assert 0 < largest < 200


def test_very_long_lines_are_cut_without_losing_text(tmp_path: Path) -> None:
    tokenizer = learn("bpe")
    line = "天" * 70_000 + "the river " * 7000
    split = TokenStore.open(build(tmp_path / "run", tokenizer, [Document(line, "a", (5,))])).split("train")
    ids, marks = read_all(split)
    assert tokenizer.decode(ids.tolist()) == line
    assert np.count_nonzero(marks & LINE) == np.count_nonzero(marks & SENTENCE) - 1 == 1
    assert split.trace(split.num_tokens - 2) == ("a", 5)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(70_000)} | {"[UNK]": 70_000, "[SEP]": 70_001}
    backend = Backend(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[UNK]", "[SEP]"])
    document = Document("w1 w65535 w65536 w69999 nothing", "a", (1,))
    artifact = build(tmp_path / "run", Tokenizer(backend), [document], shard_tokens=16)
    assert artifact.file("train-00000.ids.bin").stat().st_size == 6 * 4
    split = TokenStore.open(artifact).split("train")
    assert split.tokens(0, 9).tolist() == [1, 65_535, 65_536, 69_999, 70_000, 70_001]
    assert split.gather(np.array([1]), 3)[0].tolist() == [[65_535, 65_536, 69_999]]


def test_chinese_words_may_be_left_to_the_tokenizer(tmp_path: Path) -> None:
    documents = [Document("中国人民", "a", (1,))]
    tokenizer = learn("wordpiece")
    words = {
        kind: TokenStore.open(build(tmp_path / kind, tokenizer, documents, words=kind))
        .split("train")
        .counts["words"]
        for kind in ("segmenter", "pretokens")
    }
    assert words == {"segmenter": 2, "pretokens": 4}


def test_stage_is_skipped_when_up_to_date_and_refused_when_not(tmp_path: Path) -> None:
    tokenizer = learn("wordpiece")
    first = build(tmp_path / "run", tokenizer, make_documents())
    run = tmp_path / "run"
    again = build_store(TokensConfig(), open_verified(run / "c"), open_verified(run / "t"), run)
    assert again.digest == first.digest
    with pytest.raises(IncompatibleError, match="shard_tokens"):
        build_store(TokensConfig(shard_tokens=99), open_verified(run / "c"), open_verified(run / "t"), run)


def test_a_changed_shard_is_refused_when_touched(tmp_path: Path) -> None:
    artifact = build(tmp_path / "run", learn("wordpiece"), make_documents())
    file = artifact.path / "train-00000.marks.bin"
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    split = TokenStore.open(artifact.path).split("train")
    assert split.num_tokens > 0
    with pytest.raises(IntegrityError, match=r"train-00000\.marks\.bin"):
        split.slice(0, 3)


def test_a_wrong_tokenizer_is_refused_with_both_digests(tmp_path: Path) -> None:
    right, wrong = learn("wordpiece"), learn("bpe")
    store = TokenStore.open(build(tmp_path / "run", right, make_documents()))
    check_tokenizer(store, right)
    with pytest.raises(IncompatibleError) as caught:
        check_tokenizer(store, wrong)
    assert right.digest in str(caught.value)
    assert wrong.digest in str(caught.value)
    assert (store.vocab_size, store.separator_id) == (right.vocab_size, right.separator_id)


def test_windows_cannot_be_written_into(tmp_path: Path) -> None:
    split = TokenStore.open(build(tmp_path / "run", learn("wordpiece"), make_documents())).split("train")
    before = split.tokens(0, 8).tolist()
    split.gather(np.array([0]), 8)[0][:] = 0
    split.slice(0, 8)[0][:] = 0
    split.slice(0, 8)[1][:] = 0
    assert split.tokens(0, 8).tolist() == before
    with pytest.raises(ValueError, match="read-only"):
        split.document_starts()[0] = 1
