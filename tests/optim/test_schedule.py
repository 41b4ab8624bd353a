import pytest

from seedbed.optim.schedule import SCHEDULES


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
    if num_steps >= 100:
        assert factors[-1] < 0.05
    assert schedule.factor(num_steps, num_steps) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_floor_holds(name):
    schedule = SCHEDULES[name](final_fraction=0.1)
    assert schedule.factor(1000, 1000) == pytest.approx(0.1)
    assert min(schedule.factor(s, 1000) for s in range(40, 1000)) >= 0.1


def test_shapes_are_what_their_names_say():
    linear = SCHEDULES["linear"](warmup_fraction=0.0, min_warmup_steps=0)
    cosine = SCHEDULES["cosine"](warmup_fraction=0.0, min_warmup_steps=0)
    stable = SCHEDULES["warmup_stable_decay"](warmup_fraction=0.0, min_warmup_steps=0, decay_fraction=0.2)
    assert [linear.factor(s, 4) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert cosine.factor(50, 100) == pytest.approx(0.5)
    assert cosine.factor(25, 100) == pytest.approx(0.8535534)
    assert [round(stable.factor(s, 100), 2) for s in (0, 50, 80, 90, 100)] == [1.0, 1.0, 1.0, 0.5, 0.0]
