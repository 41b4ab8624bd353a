from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from seedbed.errors import ConfigError
from seedbed.generation.samplers import Sampler, keep_top


def reference(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """Keep tokens one by one, the slow way."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    weights = [math.exp(logits[i]) for i in order]
    total = sum(weights)
    kept: set[int] = set()
    reached = 0.0
    for i, weight in zip(order, weights, strict=True):
        if reached >= top_p and top_p < 1:
            break
        kept.add(i)
        reached += weight / total
    return kept


@pytest.mark.parametrize("top_k", [0, 1, 3, 11, 40])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.77, 0.999, 1.0])
def test_kept_tokens_are_those_of_a_slow_reference(top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(top_k)) * 3
    logits[:5] = logits[:5].round()  # Ties.
    kept = keep_top(logits, top_k=top_k, top_p=top_p)
    for row, source in zip(kept, logits, strict=True):
        expected = reference(source.tolist(), top_k, top_p)
        assert set(row.isfinite().nonzero()[:, 0].tolist()) == expected
        assert torch.equal(row[list(expected)], source[list(expected)])


def test_greedy_takes_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    assert Sampler(top_k=2, seed=9)(logits, rows=torch.arange(2), step=0).tolist() == [1, 0]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0, -3.0])
    sampler = Sampler(temperature=1.5, top_k=4)
    count = 40_000
    chosen = Counter(sampler(logits.expand(count, -1), rows=torch.arange(count), step=3).tolist())
    assert chosen[4] == 0
    expected = (logits[:4] / 1.5).softmax(-1)
    for token in range(4):
        share = float(expected[token])
        assert abs(chosen[token] / count - share) < 4.5 * math.sqrt(share * (1 - share) / count)


def test_draws_are_a_function_of_seed_row_and_step() -> None:
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    sampler = Sampler(temperature=1.0, seed=4)
    first = sampler(logits, rows=rows, step=2)
    torch.manual_seed(123)
    assert torch.equal(sampler(logits, rows=rows, step=2), first)
    assert torch.equal(sampler(logits[[4, 1]], rows=rows[[4, 1]], step=2), first[[4, 1]])
    same = logits[:1].expand(200, -1)
    many = torch.arange(200)
    base = sampler(same, rows=many, step=0)
    assert len(set(base.tolist())) > 20
    for other in (
        sampler(same, rows=many, step=1),
        Sampler(temperature=1.0, seed=5)(same, rows=many, step=0),
    ):
        assert float((other == base).float().mean()) < 0.2


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
def test_extreme_temperatures_stay_valid(temperature: float) -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)) * 50
    chosen = Sampler(temperature=temperature)(logits, rows=torch.arange(50), step=0)
    assert ((chosen >= 0) & (chosen < 20)).all()
    if temperature < 1:
        assert torch.equal(chosen, logits.argmax(-1))


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Sampler(**wrong)  # type: ignore[arg-type]
