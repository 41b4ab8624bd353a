import gzip
import logging

import numpy as np
import pytest
import torch

from seedbed.data.memory import TextTokens
from seedbed.data.pairs import SentencePairView
from seedbed.data.store import DOCUMENT, SENTENCE, SPECIAL, WORD
from seedbed.data.views import RowReader
from seedbed.errors import DataError
from seedbed.tokenizer.tokenizer import Tokenizer
from toys import ToySplit


class Sentences(ToySplit):
    """Documents given as lengths of sentences; a token's id is its place in the split, so that rows can be traced."""

    def __init__(self, documents):
        marks, starts = [], []
        for sentences in documents:
            starts.append(len(marks))
            for number, size in enumerate(sentences):
                first = SENTENCE | WORD | (DOCUMENT if number == 0 else 0)
                marks += [first, *[WORD] * (size - 1)]
            marks.append(SPECIAL | SENTENCE | WORD)
        self.marks = np.array(marks, dtype=np.uint8)
        self.ids = np.arange(len(marks), dtype=np.int32)
        self._starts = np.array(starts, dtype=np.int64)
        self.num_tokens, self.num_documents = len(marks), len(documents)

    def document_of(self, token):
        return int(np.searchsorted(self._starts, token, side="right")) - 1


def random_split(num_documents=60, seed=0, longest=12):
    random = np.random.default_rng(seed)
    return Sentences(
        [random.integers(1, longest, random.integers(2, 30)).tolist() for _ in range(num_documents)]
    )


def all_rows(view, epoch=0):
    numbers = np.arange(view.num_rows)
    return view.rows(np.full_like(numbers, epoch), numbers)


def parts(rows):
    """The two parts of each row as lists of places, with the label."""
    for ids, length, first, label in zip(
        rows.ids.tolist(),
        rows.lengths.tolist(),
        rows.first_lengths.tolist(),
        rows.labels.tolist(),
        strict=True,
    ):
        assert not any(ids[length:])
        yield ids[:first], ids[first:length], label


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
@pytest.mark.parametrize("epoch", [0, 3])
def test_parts_are_runs_of_whole_sentences(kind, epoch):
    split = random_split()
    view = SentencePairView(split, length=40, kind=kind, seed=1)
    rows = all_rows(view, epoch)
    seen = {0: 0, 1: 0}
    for one, other, label in parts(rows):
        for part in (one, other):
            assert part == list(range(part[0], part[-1] + 1))
            assert split.marks[part[0]] & SENTENCE
            assert split.marks[part[-1] + 1] & SENTENCE  # the next sentence, or the separator
            assert split.document_of(part[0]) == split.document_of(part[-1])
            assert not (split.marks[part] & SPECIAL).any()
        if label == 0:
            assert other[0] == one[-1] + 1
        elif kind == "sentence_order":
            assert one[0] == other[-1] + 1
        else:
            assert split.document_of(one[0]) != split.document_of(other[0])
        seen[label] += 1
    assert (rows.lengths <= 40).all()
    assert seen[0] > 0 < seen[1]
    marks = torch.from_numpy(split.marks)[rows.ids]
    inside = torch.arange(40)[None, :] < rows.lengths[:, None]
    assert torch.equal(rows.marks[inside], marks[inside])


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
def test_half_of_the_rows_are_the_text_as_it_stands(kind):
    view = SentencePairView(random_split(600), length=24, kind=kind, seed=0)
    assert view.num_rows > 2000
    assert float(all_rows(view).labels.float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
def test_a_row_is_a_pure_function_of_seed_epoch_and_number(kind):
    split = random_split()
    whole = all_rows(SentencePairView(split, length=40, kind=kind, seed=1), epoch=2)
    again = SentencePairView(split, length=40, kind=kind, seed=1)
    for number in (17, 0, 5):
        alone = again.rows(np.array([2]), np.array([number]))
        assert torch.equal(alone.ids[0], whole.ids[number])
        assert alone.labels[0] == whole.labels[number]
    for other in (
        all_rows(again, epoch=3),
        all_rows(SentencePairView(split, length=40, kind=kind, seed=2), epoch=2),
    ):
        assert not torch.equal(other.ids, whole.ids)
        assert not torch.equal(other.labels, whole.labels)


def test_rows_read_in_any_order_are_the_same():
    view = SentencePairView(random_split(), length=40, kind="sentence_order", seed=1)
    reader = RowReader(view, name="sentence_pairs", seed=4)
    rows, _ = reader.read(0, 30)
    for place in (29, 3):
        assert torch.equal(reader.read(place, 1)[0].ids[0], rows.ids[place])


def test_rows_are_full_but_for_less_than_a_sentence():
    split = random_split(50, longest=9)
    view = SentencePairView(split, length=40, kind="sentence_order", seed=0, short_rate=0.0)
    sizes = np.diff(np.append(split.document_starts(), split.num_tokens)) - 1
    for one, other, _ in parts(all_rows(view)):
        whole = sizes[split.document_of(one[0])]
        assert len(one) + len(other) > min(whole - 1, 40 - 9)


def test_an_epoch_shows_nearly_every_token():
    split = random_split(60)
    view = SentencePairView(split, length=40, kind="sentence_order", seed=0, short_rate=0.0)
    seen = set()
    for epoch in (0, 1):
        rows = all_rows(view, epoch)
        seen |= {token for one, other, _ in parts(rows) for token in one + other}
        if epoch == 0:
            assert len(seen) > 0.85 * split.num_tokens
            assert int(rows.lengths.sum()) < 1.15 * split.num_tokens
    assert len(seen) > 0.94 * (split.num_tokens - split.num_documents)


def test_the_length_of_a_row_does_not_tell_its_label():
    """A judge that sees nothing but the two lengths does not do better than chance by more than a little."""
    view = SentencePairView(
        random_split(400, longest=9), length=64, kind="next_sentence", seed=0, short_rate=0.1
    )
    rows = all_rows(view)
    label = rows.labels.bool()
    for size in (rows.lengths, rows.first_lengths, rows.lengths - rows.first_lengths):
        assert float(size[label].float().mean()) == pytest.approx(float(size[~label].float().mean()), abs=3.0)
        best = max(float(((size <= limit) == label).float().mean()) for limit in range(1, 64))
        assert max(best, 1 - best) < 0.58  # documents hardly longer than a row are the worst case


def test_short_rows_come_at_their_rate():
    split = Sentences([[2] * 400] * 3)
    full = all_rows(SentencePairView(split, length=40, kind="sentence_order", seed=0, short_rate=0.0))
    assert (full.lengths == 40).all()
    assert full.is_full
    short = all_rows(SentencePairView(split, length=40, kind="sentence_order", seed=0, short_rate=1.0))
    assert (short.lengths < 40).float().mean() > 0.9
    assert 15 < short.lengths.float().mean() < 28  # uniform


def test_two_sentences_too_long_for_a_row_lose_their_outer_ends():
    split = Sentences([[100, 3, 100, 100, 100], [5, 5]])
    for kind in ("sentence_order", "next_sentence"):
        for epoch in range(6):
            for one, other, label in parts(
                all_rows(SentencePairView(split, length=32, kind=kind, seed=0, short_rate=0.0), epoch)
            ):
                assert 0 < len(one) + len(other) <= 32
                assert min(len(one), len(other)) >= 3
                if label == 0:
                    assert other[0] == one[-1] + 1


def test_documents_of_one_sentence_are_passed_over_and_counted(caplog):
    split = Sentences([[9], [4, 4], [30], [5, 6, 7], [2]])
    with caplog.at_level(logging.WARNING):
        view = SentencePairView(split, length=16, kind="next_sentence", seed=0)
    assert (view.num_documents, view.passed_over) == (2, 3)
    assert "3 of 5 documents" in caplog.text
    used = {split.document_of(token) for one, other, _ in parts(all_rows(view)) for token in one + other}
    assert used == {1, 3}


def test_text_without_pairs_is_refused():
    with pytest.raises(DataError, match="has 0 of 2") as refused:
        SentencePairView(Sentences([[9], [4]]), length=16, kind="sentence_order", seed=0)
    assert "masked_lm" in refused.value.hint
    with pytest.raises(DataError, match="has 1 of 2"):
        SentencePairView(Sentences([[9, 3], [4]]), length=16, kind="next_sentence", seed=0)
    with pytest.raises(DataError):
        SentencePairView(ToySplit(0), length=16, kind="sentence_order", seed=0)


def test_every_cut_comes_up():
    split = Sentences([[4] * 8] * 40)
    rows = all_rows(SentencePairView(split, length=32, kind="sentence_order", seed=0, short_rate=0.0))
    cuts = {len(other if label else one) for one, other, label in parts(rows)}
    assert cuts == {4 * n for n in range(1, 8)}


@pytest.mark.data
def test_lengths_do_not_tell_on_real_text(data_dir):
    """Wikipedia in both languages: rows are filled, and a judge of lengths is at chance."""
    for name, vocab in (("wiki-en", "google_uncased_en_vocab.txt"), ("wiki-zh", "google_zh_vocab.txt")):
        tokenizer = Tokenizer.load(data_dir / "vocabs" / vocab)
        with gzip.open(data_dir / name / f"{name}.txt.gz", "rt", encoding="utf-8") as file:
            tokens = TextTokens(file.read(2_000_000).split("\n\n")[:200], tokenizer)
        view = SentencePairView(tokens, length=125, kind="next_sentence", seed=0, short_rate=0.0)
        assert view.passed_over <= 0.05 * (view.num_documents + view.passed_over)
        rows = all_rows(view)
        label = rows.labels.bool()
        assert float(rows.lengths.float().mean()) > 0.8 * 125
        for size in (rows.lengths, rows.first_lengths, rows.lengths - rows.first_lengths):
            best = max(float(((size <= limit) == label).float().mean()) for limit in range(1, 126))
            assert max(best, 1 - best) < 0.56
