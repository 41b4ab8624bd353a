import pytest
import torch

from seedbed.optim.schedule import SCHEDULES

ENDLESS = {"constant", "inverse_square_root", "reduce_on_plateau"}  # do not end low by themselves


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 7, 100, 5000])
def test_every_schedule_warms_up_peaks_and_ends_low(name, num_steps):
    schedule = SCHEDULES[name]()
    factors = [schedule.factor(step, num_steps) for step in range(num_steps)]
    assert all(0.0 < f <= 1.0 for f in factors)
    assert max(factors) == pytest.approx(1.0)
    warmup = schedule.warmup_steps(num_steps)
    assert warmup <= max(1, num_steps // 2)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if name in ENDLESS:
        return
    if num_steps >= 100:
        assert factors[-1] < 0.05
    assert schedule.factor(num_steps, num_steps) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_floor_holds(name):
    schedule = SCHEDULES[name](final_fraction=0.1)
    if name not in ENDLESS:
        assert schedule.factor(1000, 1000) == pytest.approx(0.1)
    history = [(i * 10, 1.0) for i in range(1, 100)]
    assert min(schedule.factor(s, 1000, history) for s in range(40, 1000)) >= 0.1


def test_shapes_are_what_their_names_say():
    linear = SCHEDULES["linear"](warmup_fraction=0.0, min_warmup_steps=0)
    cosine = SCHEDULES["cosine"](warmup_fraction=0.0, min_warmup_steps=0)
    stable = SCHEDULES["warmup_stable_decay"](warmup_fraction=0.0, min_warmup_steps=0, decay_fraction=0.2)
    square = SCHEDULES["polynomial"](warmup_fraction=0.0, min_warmup_steps=0, power=2.0)
    constant = SCHEDULES["constant"](warmup_fraction=0.0, min_warmup_steps=0)
    assert [linear.factor(s, 4) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [square.factor(s, 4) for s in range(5)] == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    assert {constant.factor(s, 4) for s in range(5)} == {1.0}
    assert cosine.factor(50, 100) == pytest.approx(0.5)
    assert cosine.factor(25, 100) == pytest.approx(0.8535534)
    assert [round(stable.factor(s, 100), 2) for s in (0, 50, 80, 90, 100)] == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_the_inverse_square_root_does_not_know_the_length_of_the_run():
    schedule = SCHEDULES["inverse_square_root"](warmup_fraction=0.0, min_warmup_steps=100)
    assert schedule.factor(399, 1000) == schedule.factor(399, 50_000) == pytest.approx(0.5)
    late = SCHEDULES["inverse_square_root"](warmup_fraction=0.0, min_warmup_steps=0, timescale_steps=400)
    assert [late.factor(s, 10_000) for s in (0, 399, 1599)] == pytest.approx([1.0, 1.0, 0.5])


@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_reduce_on_plateau_is_torchs(cooldown, seed):
    losses = (2.0 + torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 0.3).tolist()
    schedule = SCHEDULES["reduce_on_plateau"](
        warmup_fraction=0.0, min_warmup_steps=0, reduction=0.5, patience=1, cooldown=cooldown
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, cooldown=cooldown, threshold=1e-3, threshold_mode="rel", eps=0.0
    )
    history = []
    for index, loss in enumerate(losses):
        history.append((10 * (index + 1), loss))
        reference.step(loss)
        expected = optimizer.param_groups[0]["lr"]
        assert schedule.factor(10 * (index + 1), 1000, history) == pytest.approx(expected)
    assert expected < 0.1


def test_reduce_on_plateau_does_not_look_ahead():
    """A record is written a step late, when a validation may already have come."""
    schedule = SCHEDULES["reduce_on_plateau"](warmup_fraction=0.0, min_warmup_steps=0, patience=0)
    history = [(10, 1.0), (20, 1.0), (30, 1.0)]
    assert [schedule.factor(s, 100, history) for s in (0, 19, 20, 29, 30)] == [1.0, 1.0, 0.5, 0.5, 0.25]
