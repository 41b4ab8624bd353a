"""Windows made beside the step are those made when asked for, in whatever order they are asked for."""

import sys
import threading

import numpy as np
import pytest
import torch

from seedbed.data.examples import ExampleReader
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.training.ahead import Ahead, made_ahead
from seedbed.training.feed import Entry, Feed
from toys import VOCABULARY, toy_reader

LENGTH = 16


def feed():
    objective = MaskedLMConfig(initial_mask_rate=0.4).build(VOCABULARY, row_length=LENGTH, is_segmented=False)
    entry = Entry("masked_lm", objective, toy_reader(objective.raw_row_length))
    return Feed([entry], rows_per_step=8, num_windows=10, micro_batch_rows=4)


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.batch.input_ids, b.batch.input_ids)
        assert torch.equal(a.batch.row_ids, b.batch.row_ids)
        assert a.counts == b.counts
        for term in a.targets:
            assert torch.equal(a.targets[term].at, b.targets[term].at)
            assert torch.equal(a.targets[term].values, b.targets[term].values)


def test_any_order_gives_the_same_windows():
    plain, ahead = feed(), Ahead(feed())
    for window in (0, 1, 2, 2, 5, 6, 3, 9):  # again after a rollback, elsewhere after a resume, the last
        same(ahead.micro_batches(window), plain.micro_batches(window))
    ahead.close()


def test_the_next_window_is_made_in_a_thread_before_it_is_asked_for():
    made, done = [], threading.Event()

    class Watched:
        num_windows = 3

        def micro_batches(self, window):
            made.append((window, threading.current_thread().name))
            if window == 1:
                done.set()
            return []

    ahead = Ahead(Watched())
    ahead.micro_batches(0)
    assert done.wait(10)
    ahead.micro_batches(1)
    ahead.micro_batches(2)
    ahead.close()
    assert [window for window, _ in made] == [0, 1, 2]  # each once, and none after the last
    assert all(name.startswith("seedbed-rows") for _, name in made)


def test_an_error_comes_out_where_the_window_is_asked_for():
    class Broken:
        num_windows = 3

        def micro_batches(self, window):
            if window == 1:
                raise ValueError("a shard is damaged")
            return []

    ahead = Ahead(Broken())
    ahead.micro_batches(0)
    with pytest.raises(ValueError, match="damaged"):
        ahead.micro_batches(1)
    ahead.close()


def test_a_cpu_makes_windows_when_asked():
    own = feed()
    with made_ahead(own, torch.device("cpu")) as windows:
        assert windows is own


def test_counts_are_taken_on_the_host_where_the_batch_is_made():
    (first, second) = feed().micro_batches(0)
    objective = feed().entries[0].objective
    assert first.counts == objective.counts(first.targets)
    assert second.to("meta").counts == second.counts  # reading them there would fail


def disturbed(function, *args, by, from_line=0):
    """Call a method with another call of it between any two of its lines from the n-th on, as a second thread might."""
    code, is_inside, lines = function.__func__.__code__, [], []

    def trace(frame, event, arg):
        if frame.f_code is not code:
            return None
        if event == "line" and not is_inside:
            lines.append(frame.f_lineno)
        if event == "line" and not is_inside and len(lines) > from_line:
            is_inside.append(True)
            function(*by)
            is_inside.clear()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return function(*args)
    finally:
        sys.settrace(before)


def test_readers_serve_two_threads_at_different_epochs():
    """As when a rollback looks up rows of an epoch that is over while the next one's are made: caches hold one epoch."""
    reader = toy_reader(7, document_order_key=5)
    view, places = reader.view, np.arange(reader.num_rows)
    for epoch in (0, 1):
        found = disturbed(view._documents, epoch, by=(1 - epoch,))
        assert all(np.array_equal(a, b) for a, b in zip(found, view._documents(epoch), strict=True))
        found = disturbed(reader._order, epoch, by=(3 - epoch,))
        assert np.array_equal(found(places), reader._order(epoch)(places))


def test_readers_of_examples_serve_two_threads_too():
    class Texts:
        num_rows = 40
        lengths = np.arange(40) % 7 + 1

    reader = ExampleReader(Texts(), name="examples", seed=0, batch_rows=4)
    second, first = reader._members(1, 0).copy(), reader._members(0, 0).copy()
    assert not np.array_equal(first, second)
    for line in range(4):
        assert np.array_equal(reader._members(0, 0), first)
        assert np.array_equal(disturbed(reader._members, 0, 0, by=(1, 0), from_line=line), first)
