"""Each measure against the definition of its paper, written out pair by pair."""

import math

import pytest
import torch

from seedbed.objectives.matching import (
    attention_scores,
    cosine_distance,
    regrouped,
    relation_divergence,
    score_error,
    soft_targets,
    state_error,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_soft_targets_are_a_softened_cross_entropy_less_the_teachers_entropy():
    own, other = random(4, 7), random(4, 7, seed=1)
    found = soft_targets(own, other, temperature=2.0)
    for row in range(4):
        p, q = (other[row] / 2).softmax(0), (own[row] / 2).softmax(0)
        expected = 4 * sum(float(p[v] * (p[v].log() - q[v].log())) for v in range(7))
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(soft_targets(own, own, temperature=3.0), torch.zeros(4), atol=1e-6)


def test_the_temperature_leaves_the_size_of_the_gradient():
    sizes = []
    for temperature in (1.0, 10.0, 100.0):
        own = random(8, 50).mul(0.1).requires_grad_()
        soft_targets(own, 0.1 * random(8, 50, seed=1), temperature=temperature).sum().backward()
        sizes.append(float(own.grad.norm()))
    assert max(sizes) / min(sizes) < 1.2


def test_states_are_compared_by_angle_or_by_square():
    own, other = random(3, 5), random(3, 5, seed=1)
    for row in range(3):
        dot = float((own[row] * other[row]).sum() / own[row].norm() / other[row].norm())
        assert float(cosine_distance(own, other)[row]) == pytest.approx(1 - dot, abs=1e-5)
        assert float(state_error(own, other, None)[row]) == pytest.approx(
            sum(float(a - b) ** 2 for a, b in zip(own[row], other[row], strict=True)) / 5, rel=1e-4
        )
    projection = torch.nn.Linear(5, 5, bias=False)
    with torch.no_grad():
        projection.weight.copy_(torch.linalg.lstsq(own, other).solution.T)
    assert state_error(own, other, projection).max() < 1e-6


@pytest.mark.parametrize("measure", ["square", "divergence"])
def test_attention_is_compared_at_allowed_pairs_only(measure):
    batch, heads, length, width = 2, 4, 6, 3
    q, k = random(batch, heads, length, width), random(batch, 2, length, width, seed=1)
    own = attention_scores(q, k)
    other = random(batch, heads, length, length, seed=2)
    assert float(own[1, 3, 2, 4]) == pytest.approx(
        float(q[1, 3, 2] @ k[1, 1, 4]) / math.sqrt(width), rel=1e-4
    )
    allowed = torch.ones(length, length).tril().bool()[None]
    found = (score_error if measure == "square" else relation_divergence)(own, other, allowed)
    for row in range(batch):
        for i in range(length):
            total = 0.0
            for head in range(heads):
                mine, theirs = own[row, head, i, : i + 1], other[row, head, i, : i + 1]
                if measure == "square":
                    total += float((mine - theirs).square().sum()) / (i + 1)
                else:
                    p = theirs.softmax(0)
                    total += float((p * (p.log() - mine.softmax(0).log())).sum())
            assert float(found[row, i]) == pytest.approx(total / heads, rel=1e-3, abs=1e-6)


def test_what_may_not_be_attended_has_no_gradient():
    own = random(1, 2, 4, 4).requires_grad_()
    allowed = torch.ones(4, 4).tril().bool()[None]
    relation_divergence(own, random(1, 2, 4, 4, seed=1), allowed).sum().backward()
    assert torch.isfinite(own.grad).all()
    assert not own.grad[:, :, ~allowed[0]].any()
    assert own.grad[:, :, 1:][:, :, allowed[0][1:]].abs().min() > 0


def test_regrouped_heads_hold_the_same_channels():
    states = random(2, 4, 5, 6)
    flat = states.transpose(1, 2).flatten(2)
    again = regrouped(states, 3)
    assert again.shape == (2, 3, 5, 8)
    assert torch.equal(again.transpose(1, 2).flatten(2), flat)
    assert torch.equal(regrouped(again, 4), states)
