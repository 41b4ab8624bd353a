"""Examples as rows: what is cut, padded and sorted, and that all of it is a pure function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.data.examples import ExampleReader, ExampleTokens, ExampleView, Texts, cut_longest_first
from seedbed.errors import DataError


def texts(lengths, start=1):
    ids = np.concatenate([np.arange(start + 100 * i, start + 100 * i + n) for i, n in enumerate(lengths)])
    return Texts(ids.astype(np.int32), np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))


def examples(first, second=None, labels=None):
    return ExampleTokens(texts(first), None if second is None else texts(second, start=51), labels)


def some(count=200, *, seed=0, pairs=True):
    random = np.random.default_rng(seed)
    first = random.integers(1, 40, count)
    second = random.integers(1, 40, count) if pairs else None
    return examples(first, second, np.arange(count) % 3)


def read(view, numbers):
    return view.rows(np.zeros(len(numbers), np.int64), np.array(numbers, np.int64))


def test_rows_hold_both_texts_and_the_label():
    view = ExampleView(examples([2, 3], [4, 1], np.array([1, 0])), max_tokens=10)
    rows = read(view, [1, 0])
    assert rows.ids.tolist() == [[101, 102, 103, 151, 0, 0], [1, 2, 51, 52, 53, 54]]
    assert rows.lengths.tolist() == [4, 6]
    assert rows.first_lengths.tolist() == [3, 2]
    assert rows.labels.tolist() == [0, 1]
    assert rows.labels.dtype == torch.int64
    assert not rows.is_full
    single = read(ExampleView(examples([2, 3]), max_tokens=10), [0, 1])
    assert single.first_lengths is None
    assert single.labels is None


def test_a_row_is_the_same_in_any_batch():
    view = ExampleView(some(), max_tokens=30)
    whole = read(view, range(20))
    for number in range(20):
        alone = read(view, [number])
        length = int(alone.lengths[0])
        assert torch.equal(alone.ids[0], whole.ids[number, :length])
        assert not whole.ids[number, length:].any()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 60))
def test_cutting_is_token_by_token_from_the_longer(first, second, limit):
    a, b = first, second
    while a + b > limit:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    cut = cut_longest_first(np.array([first]), np.array([second]), limit)
    assert [int(x[0]) for x in cut] == [a, b]


def test_what_is_cut_is_reported():
    view = ExampleView(examples([10, 3, 8], [2, 3, 8]), max_tokens=9)
    assert view.lengths.tolist() == [9, 6, 9]
    assert (view.num_cut, view.tokens_cut, view.num_tokens) == (2, 3 + 7, 34)
    with pytest.raises(DataError, match="too few"):
        ExampleView(examples([1], [1]), max_tokens=1)


@pytest.mark.parametrize("count", [1, 7, 64, 200])
def test_every_example_comes_once_an_epoch_and_epochs_differ(count):
    view = ExampleView(some(count), max_tokens=60)
    reader = ExampleReader(view, name="t", seed=3, batch_rows=8, window_batches=4)
    orders = []
    for epoch in range(3):
        rows, _ = reader.read(epoch * count, count)
        assert sorted(rows.row_ids.tolist()) == list(range(count))
        assert set(rows.epochs.tolist()) == {epoch}
        orders.append(rows.row_ids.tolist())
    assert count <= 8 or orders[0] != orders[1]  # one batch is sorted


def test_any_place_can_be_read_alone():
    view = ExampleView(some(100), max_tokens=60)

    def reader(seed=3):
        return ExampleReader(view, name="t", seed=seed, batch_rows=8, window_batches=4)

    whole, draws = reader().read(0, 250)
    for place in (0, 99, 100, 249, 31):
        alone, drawn = reader().read(place, 1)
        assert int(alone.row_ids[0]) == int(whole.row_ids[place])
        assert int(drawn.row_keys[0]) == int(draws.row_keys[place])
    other, _ = reader(seed=4).read(0, 250)
    assert other.row_ids.tolist() != whole.row_ids.tolist()


def test_batches_hold_like_lengths_in_an_order_that_does_not_rise():
    view = ExampleView(some(640, pairs=False), max_tokens=60)

    def cells(window_batches):
        reader = ExampleReader(view, name="t", seed=1, batch_rows=8, window_batches=window_batches)
        return [reader.read(start, 8)[0].shape[1] for start in range(0, 640, 8)]

    plain, sorted_ = cells(1), cells(20)
    assert sum(sorted_) < 0.7 * sum(plain)
    window = sorted_[:20]
    assert window not in (sorted(window), sorted(window, reverse=True))


def test_no_examples_are_refused():
    with pytest.raises(DataError):
        ExampleView(ExampleTokens(Texts(np.zeros(0, np.int32), np.zeros(1, np.int64))), max_tokens=5)
