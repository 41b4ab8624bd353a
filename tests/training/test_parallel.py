"""Workers: a heartbeat that notices silence, rows cut over workers, sums in a tree."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from seedbed.errors import ConfigError, IncompatibleError, IntegrityError, WorkerLostError
from seedbed.training import drift, exact, parallel
from seedbed.training.drift import DriftHook, bit_sums
from seedbed.training.exact import ExactSum, PairwiseSum
from seedbed.training.feed import Feed
from seedbed.training.heartbeat import Heartbeat

# --- heartbeat ---------------------------------------------------------------------------------------------------------


def beat(store, rank, size=2, **options):
    lost: list[WorkerLostError] = []
    told = threading.Event()

    def on_loss(error):
        lost.append(error)
        told.set()

    heart = Heartbeat(
        store,
        rank=rank,
        size=size,
        every_seconds=0.05,
        on_loss=on_loss,
        **{"patience_seconds": 0.6} | options,
    )
    return heart, lost, told


def test_workers_that_beat_are_not_lost():
    store = dist.HashStore()
    (first, lost, told), (second, lost2, _) = beat(store, 0), beat(store, 1)
    with first, second:
        assert not told.wait(1.5)
    assert not lost
    assert not lost2


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_worker_is_named(silent):
    store = dist.HashStore()
    heart, lost, told = beat(store, 1 - silent)
    store.set(str(silent), "1")  # it beat once, and never again
    with heart:
        assert told.wait(5)
    assert f"worker {silent} has not been heard of" in lost[0].message
    assert lost[0].exit_code == 10
    assert lost[0].hint


def test_a_worker_that_never_came_is_lost_too():
    heart, lost, told = beat(dist.HashStore(), 0)
    with heart:
        assert told.wait(5)
    assert "worker 1" in lost[0].message


def test_a_store_that_is_gone_is_a_loss():
    class Gone(dist.HashStore):
        def check(self, keys):
            raise RuntimeError("connection reset")

    heart, lost, told = beat(Gone(), 1)
    with heart:
        assert told.wait(5)
    assert "cannot be reached" in lost[0].message


def test_an_incomplete_launch_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="RANK"), parallel.joined(device_type="cpu"):
        pass


def test_torchs_words_for_a_broken_connection_become_ours(monkeypatch):
    monkeypatch.setattr(parallel, "num_workers", lambda: 2)
    with pytest.raises(WorkerLostError), parallel.lost_workers_named():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:532] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shape"), parallel.lost_workers_named():
        raise RuntimeError("shape mismatch")


# --- rows --------------------------------------------------------------------------------------------------------------


def parts(count, *, unit, size, num_workers):
    feed = Feed.__new__(Feed)
    feed.num_workers = num_workers
    cuts = []
    for worker in range(num_workers):
        feed.worker = worker
        cuts.append(feed._cut(count, unit, size))
    return cuts


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("unit", "size"), [(1, 4), (1, 64), (4, 8), (8, 8)])
def test_workers_share_the_rows_of_a_window(num_workers, unit, size):
    for groups in range(13):
        count = groups * unit
        cuts = parts(count, unit=unit, size=size, num_workers=num_workers)
        rows = [at + i for cut in cuts for at, number in cut for i in range(number)]
        assert rows == list(range(count)), "each row once, in order"
        assert len({len(cut) for cut in cuts}) == 1, "as many micro-batches on every worker"
        real = [sum(number for _, number in cut) for cut in cuts]
        assert max(real) - min(real) <= unit
        assert all(number % unit == 0 for cut in cuts for _, number in cut)


def test_an_exact_cut_is_one_workers_cut():
    one = [c for cut in parts(32, unit=4, size=4, num_workers=1) for c in cut]
    for num_workers in (2, 4, 8):
        several = [c for cut in parts(32, unit=4, size=4, num_workers=num_workers) for c in cut]
        assert several == one


# --- sums in a tree ----------------------------------------------------------------------------------------------------


def summed(values):
    tree = PairwiseSum()
    for value in values:
        tree.add([value])
    (total,) = tree.total()
    return total


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_sum_of_parts_is_the_sum_of_all(size):
    """Bit for bit, where a plain sum in order differs."""
    values = list(torch.randn(16, 1000, generator=torch.Generator().manual_seed(3)) * 1e3)
    whole = summed(values)
    each = 16 // size
    by_worker = [summed(values[start : start + each]) for start in range(0, 16, each)]
    assert torch.equal(summed(by_worker), whole)
    in_order = values[0].clone()
    for value in values[1:]:
        in_order = in_order + value
    assert not torch.equal(in_order, whole)


def test_every_number_of_parts_is_summed():
    for count in range(1, 20):
        assert float(summed([torch.tensor(float(2**i)) for i in range(count)])) == 2.0**count - 1


def test_nothing_and_something_is_something():
    a = torch.tensor([-0.0, 1.0])
    assert summed([None, a, None]) is a
    assert summed([None, None]) is None


def test_a_parameter_without_gradient_keeps_none_and_entries_are_added():
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    sums = ExactSum([one, two], [(0, "a"), (1, "b")])
    for entry, value in ((0, 1.0), (1, 2.0), (0, 4.0)):
        one.grad = torch.full((2,), value)
        name = "ab"[entry]
        sums.take(entry, {(entry, name): torch.tensor(value)}, is_filler=False)
        assert one.grad is None
    losses = sums.finish()
    assert one.grad.tolist() == [7.0, 7.0]
    assert two.grad is None
    assert {key: float(loss) for key, loss in losses.items()} == {(0, "a"): 5.0, (1, "b"): 2.0}


def test_another_tree_is_refused(monkeypatch):
    monkeypatch.setattr(exact, "num_workers", lambda: 2)
    parameter = nn.Parameter(torch.zeros(1))
    sums = ExactSum([parameter], [(0, "a")])
    with pytest.raises(IncompatibleError, match="power of two"):
        sums.take(0, {}, is_filler=True)
    for _ in range(3):
        sums.take(0, {(0, "a"): torch.tensor(1.0)}, is_filler=False)
    with pytest.raises(IncompatibleError, match="3 micro-batches") as refused:
        sums.finish()
    assert "micro_batch_rows" in refused.value.hint


# --- drift -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_flipped_bit_changes_the_sum(dtype):
    whole = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}[dtype]
    weights = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = bit_sums([weights])
    width = weights.element_size() * 8
    for place in range(0, 35, 6):
        for bit in range(width):
            flipped = weights.clone()
            flat = flipped.view(whole).view(-1)
            flat[place] ^= torch.tensor(1 << bit if bit < width - 1 else -(1 << bit), dtype=whole)
            assert not torch.equal(bit_sums([flipped]), before)


@pytest.mark.parametrize(
    ("num_workers", "said"), [(2, "workers 0 and 1 differ"), (3, "worker 2 differs from the others")]
)
def test_drift_is_named(monkeypatch, num_workers, said):
    model = nn.Linear(3, 2)
    state = SimpleNamespace(window=100, parameters=lambda: dict(model.named_parameters()))
    own = bit_sums(list(model.parameters()))

    def others(tensor):
        parts = [tensor.clone() for _ in range(num_workers)]
        parts[-1][1] += 1
        return parts

    monkeypatch.setattr(drift, "num_workers", lambda: num_workers)
    monkeypatch.setattr(drift, "gathered", lambda tensor: [own] * num_workers)
    assert DriftHook().is_due(state)
    DriftHook().act(state)
    monkeypatch.setattr(drift, "gathered", others)
    with pytest.raises(IntegrityError, match=said) as found:
        DriftHook().act(state)
    assert "bias" in found.value.message
    assert found.value.exit_code == 8
