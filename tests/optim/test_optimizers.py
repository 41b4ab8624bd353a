"""Contract tests over OPTIMIZERS, and parity with what each follows."""

import pytest
import torch
from torch import nn

from seedbed.optim import OPTIMIZERS, AdamWConfig, SGDConfig
from seedbed.optim.groups import decay_groups
from toys import toy_model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_cover_all_parameters_once_and_norms_do_not_decay(name):
    model = toy_model("bert")
    optimizer = OPTIMIZERS[name](weight_decay=0.3).build(model.named_parameters())
    covered = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(covered) == sorted({id(p) for p in model.parameters()})
    for group in optimizer.param_groups:
        for parameter, label in zip(group["params"], group["names"], strict=True):
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0), label


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_quadratic_converges(name):
    weight = nn.Parameter(torch.tensor([[3.0, -2.0], [1.0, 4.0]]))
    config = OPTIMIZERS[name](learning_rate=0.05, weight_decay=0.0)
    optimizer = config.build([("weight", weight)])
    for step in range(400):
        optimizer.zero_grad()
        (weight - 1.0).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step, 400)
        optimizer.step()
    assert torch.allclose(weight, torch.ones(2, 2), atol=0.02)


def test_adamw_is_the_published_update():
    """Against the formulas of arXiv 1711.05101, written out."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4))
    reference = weight.detach().clone().double()
    config = AdamWConfig(learning_rate=0.01, weight_decay=0.1, beta1=0.9, beta2=0.98, eps=1e-8)
    optimizer = config.build([("weight", weight)])
    m, v = torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for t in range(1, 8):
        gradient = torch.randn(3, 4)
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        step = (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-8)
        reference = reference - 0.01 * 0.1 * reference - 0.01 * step
    assert torch.allclose(weight.double(), reference, atol=1e-6)


def test_sgd_is_nesterov_momentum():
    weight = nn.Parameter(torch.tensor([[1.0]]))
    optimizer = SGDConfig(learning_rate=0.1, momentum=0.5, weight_decay=0.0).build([("weight", weight)])
    buffer, reference = 0.0, 1.0
    for gradient in (1.0, -2.0, 0.5):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        buffer = 0.5 * buffer + gradient
        reference -= 0.1 * (gradient + 0.5 * buffer)
    assert weight.item() == pytest.approx(reference, abs=1e-6)


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = decay_groups(model.named_parameters(), weight_decay=0.1)
    assert [g["names"] for g in groups] == [["weight"]]
