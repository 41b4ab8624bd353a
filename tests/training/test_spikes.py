"""The guard against spikes: which norms it lets pass, what it remembers, that it changes nothing where there is none."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from seedbed.training.spikes import WINDOW, SpikeGuard


def judge(guard: SpikeGuard, norm: float) -> bool:
    value = torch.tensor(norm)
    return bool(guard.take(value, torch.isfinite(value)))


def ordinary(number: int, *, seed: int = 0) -> list[float]:
    """Norms of a healthy run: falling at first, then scattered by a factor of about 1.5."""
    chance = random.Random(seed)
    return [math.exp(chance.gauss(0, 0.4)) * (1 + 20 / (1 + i)) for i in range(number)]


def test_healthy_norms_pass():
    guard = SpikeGuard()
    assert not any(judge(guard, norm) for norm in ordinary(400))


@pytest.mark.parametrize("before", [1, 2, 10, 63, 64, 127, 128, 300])
def test_a_hundredfold_norm_is_a_spike_from_the_second_step_on(before):
    guard = SpikeGuard()
    norms = ordinary(before)
    for norm in norms:
        judge(guard, norm)
    assert judge(guard, 100 * norms[-1])
    assert not judge(guard, norms[-1]), "the step after a spike is no spike"


def test_a_spike_in_the_first_step_blinds_nobody():
    guard = SpikeGuard()
    assert not judge(guard, 100.0), "nothing is before it"
    assert not judge(guard, 1.0)
    assert judge(guard, 100.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_what_is_left_out_is_not_remembered(bad):
    guard = SpikeGuard()
    for norm in ordinary(20):
        judge(guard, norm)
    values = guard.values()
    for _ in range(WINDOW):
        judge(guard, bad)
    assert guard.values() == values


def test_the_window_survives_a_checkpoint_and_goes_on_alike():
    for before in (0, 5, WINDOW, WINDOW + 7):
        guard, copy = SpikeGuard(), SpikeGuard()
        for norm in ordinary(before):
            judge(guard, norm)
        judge(copy, 3.0)  # forgotten by what follows
        copy.restore(json.loads(json.dumps(guard.values())))
        assert copy.values() == guard.values()
        for norm in ordinary(WINDOW + 3, seed=1):
            assert judge(guard, norm) == judge(copy, norm)
        assert copy.values() == guard.values()
