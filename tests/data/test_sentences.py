"""Single sentences of a store against a plain walk over its marks, and rows of several texts."""

from __future__ import annotations

import numpy as np
import pytest

from seedbed.data import sentences
from seedbed.data.examples import Texts
from seedbed.data.sentences import SentenceView, TextGroupView
from seedbed.data.store import DOCUMENT, SENTENCE, SPECIAL, WORD
from seedbed.data.views import RowReader
from seedbed.errors import DataError
from toys import ToySplit


def split_with_marked_separators(num_documents=30):
    """As in a real store: a separator is a sentence of its own."""
    split = ToySplit(num_documents)
    split.marks = np.where(split.marks & SPECIAL, split.marks | SENTENCE, split.marks).astype(np.uint8)
    return split


def walk(split, least):
    """The slow reference: all sentences of at least so many tokens."""
    found, current = [], []
    for token, mark in zip(split.ids.tolist(), split.marks.tolist(), strict=True):
        if mark & (SENTENCE | DOCUMENT):
            found.append(current)
            current = []
        if mark & SPECIAL:
            continue
        current.append(token)
    found.append(current)
    return [sentence for sentence in found if len(sentence) >= max(1, least)]


@pytest.mark.parametrize("block", [4096, 8])
@pytest.mark.parametrize(("length", "least"), [(9, 3), (4, 4), (50, 1)])
def test_rows_are_the_sentences_in_order(monkeypatch, block, length, least):
    monkeypatch.setattr(sentences, "_BLOCK", block)
    split = split_with_marked_separators()
    view = SentenceView(split, length=length, min_tokens=least)
    expected = walk(split, least)
    assert view.num_rows == len(expected)
    assert view.num_cut == sum(len(sentence) > length for sentence in expected)
    assert view.left_out == len(walk(split, 1)) - len(expected)
    every = np.arange(view.num_rows, dtype=np.int64)
    rows = view.rows(np.zeros_like(every), every)
    assert rows.shape[1] == min(length, max(map(len, expected)))
    for row, sentence in enumerate(expected):
        size = int(rows.lengths[row])
        assert rows.ids[row, :size].tolist() == sentence[:length]
        assert not rows.ids[row, size:].any()
        assert int(rows.marks[row, 0]) & WORD


def test_a_reader_gives_every_sentence_once_an_epoch():
    view = SentenceView(split_with_marked_separators(), length=8, min_tokens=2)
    rows, _ = RowReader(view, name="sentences", seed=3).read(0, view.num_rows)
    assert sorted(rows.row_ids.tolist()) == list(range(view.num_rows))
    assert rows.row_ids.tolist() != list(range(view.num_rows))


def test_a_split_of_fragments_is_refused():
    with pytest.raises(DataError, match="no sentence") as error:
        SentenceView(split_with_marked_separators(4), length=60, min_tokens=60)
    assert "min_tokens" in error.value.hint


def test_groups_of_texts_keep_their_parts():
    def texts(*rows):
        return Texts(
            np.concatenate([np.array(row, np.int32) for row in rows]),
            np.concatenate(([0], np.cumsum([len(row) for row in rows]))),
        )

    view = TextGroupView([texts([5, 6, 7, 8], [9]), texts([10], [11, 12])], length=3)
    rows = view.rows(np.zeros(2, np.int64), np.array([1, 0]))
    assert rows.ids.tolist() == [[9, 11, 12, 0], [5, 6, 7, 10]]
    assert rows.part_lengths.tolist() == [[1, 2], [3, 1]]
