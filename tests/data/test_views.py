import numpy as np
import pytest
import torch

from seedbed.data.views import RowReader, WindowView, segments_of
from seedbed.errors import DataError
from toys import ToySplit, toy_reader


@pytest.mark.parametrize("reorder", [None, 5])
@pytest.mark.parametrize("length", [7, 16, 1000])
def test_every_token_is_in_exactly_one_row_of_an_epoch(reorder, length):
    split = ToySplit(20)
    reader = RowReader(WindowView(split, length=length, document_order_key=reorder), name="windows", seed=3)
    for epoch in (0, 1):
        rows, _ = reader.read(epoch * reader.num_rows, reader.num_rows)
        assert rows.lengths.sum() == split.num_tokens  # the tail row is counted
        inside = torch.arange(length)[None, :] < rows.lengths[:, None]
        seen = np.sort(rows.ids[inside].numpy())
        assert np.array_equal(seen, np.sort(split.ids))
        assert (rows.ids[~inside] == 0).all()
        assert sorted(rows.row_ids.tolist()) == list(range(reader.num_rows))


def test_without_reordering_rows_are_the_stream_itself():
    split = ToySplit(6)
    view = WindowView(split, length=8)
    numbers = np.arange(view.num_rows)
    rows = view.rows(np.zeros_like(numbers), numbers)
    flat = rows.ids.reshape(-1)[: split.num_tokens]
    assert np.array_equal(flat.numpy(), split.ids)


def test_with_reordering_documents_stay_whole_and_in_order_inside():
    split = ToySplit(9)
    view = WindowView(split, length=8, document_order_key=11)
    numbers = np.arange(view.num_rows)
    streams = []
    for epoch in (0, 1):
        rows = view.rows(np.full_like(numbers, epoch), numbers)
        streams.append(rows.ids.reshape(-1)[: split.num_tokens].numpy())
    starts = split.document_starts()
    documents = sorted(d.tolist() for d in np.split(split.ids, starts[1:]))
    for stream in streams:
        ends = np.flatnonzero(stream == 3) + 1
        assert sorted(d.tolist() for d in np.split(stream, ends)[:-1]) == documents
    assert not np.array_equal(*streams)


def test_a_row_is_a_pure_function_of_its_place():
    reader = toy_reader(16, document_order_key=2)
    whole, draws = reader.read(0, 3 * reader.num_rows)
    other = toy_reader(16, document_order_key=2)
    for place in (2 * reader.num_rows, 5, 0, reader.num_rows - 1):
        alone, own = other.read(place, 1)
        assert torch.equal(alone.ids[0], whole.ids[place])
        assert torch.equal(own.positions("x", 16)[0], draws.positions("x", 16)[place])


def test_epochs_have_different_orders_and_draws():
    reader = toy_reader(16)
    first, draws1 = reader.read(0, reader.num_rows)
    second, draws2 = reader.read(reader.num_rows, reader.num_rows)
    assert not torch.equal(first.row_ids, second.row_ids)
    same = first.row_ids[0] == second.row_ids
    assert not torch.equal(draws1.positions("x", 16)[0], draws2.positions("x", 16)[same][0])


def test_seeds_have_different_orders():
    a, b = toy_reader(8, seed=0), toy_reader(8, seed=1)
    assert a.read(0, a.num_rows)[0].row_ids.tolist() != b.read(0, b.num_rows)[0].row_ids.tolist()


def test_segments_number_documents():
    split = ToySplit(12)
    view = WindowView(split, length=64)
    numbers = np.arange(view.num_rows)
    rows = view.rows(np.zeros_like(numbers), numbers)
    segments = segments_of(rows.marks, rows.lengths)
    for ids, segment, length in zip(rows.ids, segments, rows.lengths, strict=True):
        expected, number = [], 1
        for place in range(int(length)):
            if place > 0 and ids[place - 1] == 3:
                number += 1
            expected.append(number)
        assert segment.tolist() == expected + [0] * (64 - int(length))


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="no tokens"):
        WindowView(ToySplit(0), length=8)


def test_integers_are_in_range_and_even():
    _, draws = toy_reader(16).read(0, 10)
    values = draws.integers("replacement", 2000, 37)
    assert values.min() >= 0
    assert values.max() < 37
    counts = torch.bincount(values.reshape(-1), minlength=37)
    assert (counts.double() / values.numel() - 1 / 37).abs().max() < 0.005


@pytest.mark.parametrize("copies", [1, 3])
def test_draws_come_again_after_so_many_epochs(copies):
    """Static masks: the same row, the same draws."""
    split = ToySplit(20)
    reader = RowReader(WindowView(split, length=16), name="windows", seed=3, draw_epochs=copies)
    drawn = []
    for epoch in range(2 * copies):
        rows, draws = reader.read(epoch * reader.num_rows, reader.num_rows)
        order = rows.row_ids.argsort()
        drawn.append(draws.positions("mask", 16)[order])
    for epoch in range(copies):
        assert torch.equal(drawn[epoch], drawn[epoch + copies])
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:copies])
