"""The shared loss against one written out in float64."""

import math

import pytest
import torch
from torch import nn

from seedbed.batch import Targets
from seedbed.objectives.base import Prediction, cross_entropy


def slow_loss(logits, values, weights, *, smoothing, z_loss):
    total = 0.0
    for row, value, weight in zip(logits.double().tolist(), values.tolist(), weights, strict=True):
        log_z = math.log(sum(math.exp(x) for x in row))
        share = [smoothing / len(row) + (1.0 - smoothing) * (i == value) for i in range(len(row))]
        nll = sum(s * (log_z - x) for s, x in zip(share, row, strict=True))
        total += weight * (nll + z_loss * log_z**2)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_details", [False, True])
def test_cross_entropy_smoothing_and_z_loss(smoothing, z_loss, weighted, with_details):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(7, 5, generator=generator) * 3).requires_grad_()
    values = torch.randint(0, 5, (7,), generator=generator)
    weights = torch.rand(7, generator=generator) if weighted else None
    targets = Targets(at=torch.arange(7), values=values, weights=weights)
    term = cross_entropy(
        Prediction(logits, nn.Identity(), targets),
        label_smoothing=smoothing,
        z_loss=z_loss,
        with_details=with_details,
    )
    plain = [1.0] * 7 if weights is None else weights.tolist()
    assert term.loss.item() == pytest.approx(
        slow_loss(logits, values, plain, smoothing=smoothing, z_loss=z_loss), rel=1e-5
    )
    (gradient,) = torch.autograd.grad(term.loss, logits)
    shifted = logits.detach().clone()
    shifted[2, 3] += 1e-4
    slope = (
        slow_loss(shifted, values, plain, smoothing=smoothing, z_loss=z_loss)
        - slow_loss(logits, values, plain, smoothing=smoothing, z_loss=z_loss)
    ) / (shifted[2, 3] - logits[2, 3]).item()
    assert gradient[2, 3].item() == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_z_loss_holds_logits_that_the_loss_alone_lets_drift():
    """Cross-entropy does not see a constant added to all logits; z-loss pulls log Z to zero."""
    logits = torch.full((1, 4), 5.0, requires_grad=True)
    targets = Targets(at=torch.zeros(1, dtype=torch.int64), values=torch.zeros(1, dtype=torch.int64))
    for z_loss, moved in ((0.0, False), (0.1, True)):
        loss = cross_entropy(Prediction(logits, nn.Identity(), targets), z_loss=z_loss).loss
        (gradient,) = torch.autograd.grad(loss, logits)
        assert (gradient.sum().abs() > 1e-3).item() == moved
