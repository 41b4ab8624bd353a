"""The loss that keeps its gradient: the same sums and gradients as the plain form, whatever the blocks."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from seedbed.batch import Targets
from seedbed.objectives import summed_loss
from seedbed.objectives.base import Prediction, cross_entropy

ROWS, CLASSES = 23, 50


def plain(logits, values, weights, *, label_smoothing, z_loss):
    """The definition, in float64."""
    wide = logits.double()
    per_row = F.cross_entropy(wide, values, reduction="none", label_smoothing=label_smoothing)
    per_row = per_row + z_loss * wide.logsumexp(dim=1).square()
    return (per_row if weights is None else per_row * weights.double()).sum()


def inputs(dtype, *, is_weighted):
    generator = torch.Generator().manual_seed(1)
    logits = (4 * torch.randn(ROWS, CLASSES, generator=generator)).to(dtype).requires_grad_()
    values = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator).where(torch.arange(ROWS) % 5 > 0, 0.0)
    return logits, values, weights if is_weighted else None


@pytest.mark.parametrize("block", [1, 7 * CLASSES, 1 << 19])
@pytest.mark.parametrize(
    ("is_weighted", "label_smoothing", "z_loss"),
    list(itertools.product([False, True], [0.0, 0.1], [0.0, 0.01])),
)
def test_it_is_the_definition(monkeypatch, block, is_weighted, label_smoothing, z_loss):
    monkeypatch.setattr(summed_loss, "_BLOCK", block)
    logits, values, weights = inputs(torch.float32, is_weighted=is_weighted)
    before = logits.detach().clone()
    settings = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    found = summed_loss.summed_loss(logits, values, weights, **settings)
    (gradient,) = torch.autograd.grad(3.0 * found, logits)
    expected = plain(logits, values, weights, **settings)
    (slope,) = torch.autograd.grad(3.0 * expected, logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, before), "logits belong to the head"


def test_bfloat16_rounds_the_gradient_only():
    logits, values, _ = inputs(torch.bfloat16, is_weighted=False)
    found = summed_loss.summed_loss(logits, values)
    (gradient,) = torch.autograd.grad(1.0038 * found, logits)
    expected = plain(logits, values, None, label_smoothing=0.0, z_loss=0.0)
    (slope,) = torch.autograd.grad(1.0038 * expected, logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient, slope, rtol=2 * 2**-8, atol=1e-7)
    # The factor of the step stays float32: rounded to bfloat16 it would lengthen every gradient alike.
    ratio = gradient.double().abs().sum() / slope.double().abs().sum()
    assert abs(float(ratio) - 1.0) < 1.5e-3


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[-3e38, 0.0, 3e38], [1e4, -1e4, 1e4]], requires_grad=True)
    found = summed_loss.summed_loss(logits, torch.tensor([2, 0]))
    (gradient,) = torch.autograd.grad(found, logits)
    assert float(found.detach()) == pytest.approx(0.693147, rel=1e-5)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 0.0], [-0.5, 0.0, 0.5]]))


def test_no_number_stays_no_number():
    logits = torch.tensor([[0.0, float("nan")], [0.0, 0.0]], requires_grad=True)
    found = summed_loss.summed_loss(logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(found, logits)
    assert found.isnan()
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()


def test_training_takes_it_and_evaluation_does_not():
    logits, values, _ = inputs(torch.float32, is_weighted=False)
    prediction = Prediction(logits, torch.nn.Identity(), Targets(torch.arange(ROWS), values))
    term = cross_entropy(prediction)
    assert "SummedLoss" in type(term.loss.grad_fn).__name__
    with torch.no_grad():
        judged = cross_entropy(prediction, with_details=True)
    assert judged.sums
    assert judged.per_target is not None
    torch.testing.assert_close(term.loss.detach(), judged.loss, rtol=1e-6, atol=0)


def test_the_way_back_is_walked_once():
    """Its gradient is scaled in place; a second walk must not pass for the first."""
    logits, values, _ = inputs(torch.float32, is_weighted=False)
    found = 2.0 * summed_loss.summed_loss(logits, values)
    torch.autograd.grad(found, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(found, logits)
