"""What the host reads, and when: a GPU stands in by a copy that arrives only when its event is waited for."""

import pytest
import torch

from seedbed.training import late
from seedbed.training.late import LateNumbers
from seedbed.training.step import StepResult


def result(value=1.5, is_applied=True, loss_scale=None, device="cpu"):
    def tensor(number):
        return torch.tensor(number, device=device)

    losses = {(0, "masked_lm"): tensor(value), (1, "causal_lm"): tensor(2 * value)}
    scale = None if loss_scale is None else tensor(loss_scale)
    return StepResult(losses, tensor(3 * value), tensor(is_applied), {}, {}, scale)


class Arrives:
    """A copy under way: zeros until it is waited for."""

    def __init__(self, packed):
        self.packed, self.host = packed, torch.zeros_like(packed)

    def synchronize(self):
        self.host.copy_(self.packed)


@pytest.fixture(params=["host", "gpu"])
def make(request, monkeypatch):
    if request.param == "host":
        return LateNumbers

    def on_the_way(packed):
        way = Arrives(packed)
        return way.host, way

    monkeypatch.setattr(late, "_on_the_way", on_the_way)
    monkeypatch.setattr(late, "_is_elsewhere", lambda tensor: True)
    return LateNumbers


@pytest.mark.parametrize("loss_scale", [None, 65536.0])
@pytest.mark.parametrize("is_applied", [True, False])
def test_the_numbers_are_those_of_the_step(make, loss_scale, is_applied):
    numbers = make(result(is_applied=is_applied, loss_scale=loss_scale)).read()
    assert numbers.is_applied is is_applied
    assert (numbers.gradient_norm, numbers.loss_scale) == (4.5, loss_scale)
    assert numbers.losses == {(0, "masked_lm"): 1.5, (1, "causal_lm"): 3.0}


def test_the_next_step_changes_nothing(make):
    first = result(0.1)
    waiting = make(first)
    make(result(0.7))
    value = waiting.read().losses[0, "masked_lm"]
    assert value == float(torch.tensor(0.1))  # every bit of the float32
