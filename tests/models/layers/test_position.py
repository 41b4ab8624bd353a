from __future__ import annotations

import math

import pytest
import torch

from seedbed.batch import Batch
from seedbed.models.layers.position import (
    alibi_bias,
    alibi_slopes,
    relative_buckets,
    restarting_positions,
    rotary_table,
    rotate,
    sinusoidal_table,
)
from small_models import logits_of, native_attention, random_ids, small_model


def test_positions_restart_where_a_segment_begins() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]])
    assert restarting_positions(segments).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], list(range(8))]


def test_rotated_products_depend_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 16, generator=generator, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        table = rotary_table(torch.tensor([i, j]), 16, 10_000.0, torch.float64)
        turned = rotate(torch.cat([q, k]), table)
        return float(turned[0] @ turned[1])

    assert abs(product(3, 8) - product(103, 108)) < 1e-4
    assert abs(product(3, 8) - product(3, 9)) > 1e-2
    assert abs(product(5, 5) - float((q @ k.T).squeeze())) < 1e-6


def test_the_sinusoidal_table_is_the_formula() -> None:
    table = sinusoidal_table(torch.tensor([[0, 1, 7], [300, 2, 5]]), 6, torch.float64)
    assert table.shape == (2, 3, 6)
    for row, positions in enumerate(([0, 1, 7], [300, 2, 5])):
        for column, p in enumerate(positions):
            expected = [f(p / 10_000 ** (2 * i / 6)) for i in range(3) for f in (math.sin, math.cos)]
            torch.testing.assert_close(
                table[row, column], torch.tensor(expected, dtype=torch.float64), atol=2e-5, rtol=0
            )
    assert sinusoidal_table(torch.arange(4), 5, torch.float32).shape == (4, 5)


def test_alibi_slopes_are_the_papers() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16)[:2] == pytest.approx([2**-0.5, 2**-1])
    # 12 heads: the eight of 8, then the first, third, ... of 16.
    assert alibi_slopes(12) == pytest.approx(
        [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    )
    assert [len(alibi_slopes(heads)) for heads in range(1, 20)] == list(range(1, 20))
    assert alibi_slopes(1) == [2.0**-8]


def test_alibi_falls_with_distance_on_both_sides() -> None:
    bias = alibi_bias(torch.tensor([[0, 3]]), torch.tensor([[0, 1, 5]]), 2, torch.float32)
    assert bias.shape == (1, 2, 2, 3)
    distance = torch.tensor([[0.0, 1.0, 5.0], [3.0, 2.0, 2.0]])
    torch.testing.assert_close(bias[0], -torch.stack([distance / 2**4, distance / 2**8]))


@pytest.mark.parametrize("is_bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (10, 13), (64, 4096)])
def test_relative_buckets_are_those_of_transformers(
    num_buckets: int, max_distance: int, is_bidirectional: bool
) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-5000, 5001)
    ours = relative_buckets(
        distances, num_buckets=num_buckets, max_distance=max_distance, is_bidirectional=is_bidirectional
    )
    theirs = T5Attention._relative_position_bucket(
        distances, bidirectional=is_bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(ours, theirs)
    assert ours.min() == 0
    assert ours.max() == num_buckets - 1
    # Nearer is never in a later bucket than farther, on either side.
    left = ours[distances <= 0].flip(0)
    assert (left.diff() >= 0).all()
    if not is_bidirectional:
        assert (ours[distances >= 0] == 0).all()


@pytest.mark.parametrize("name", ["relative_encoder", "relative_decoder"])
def test_a_bias_by_place_is_the_bias_between_positions(name: str) -> None:
    relative = small_model(name).trunk.relative
    assert relative is not None
    for total, start in ((9, 0), (9, 4), (300, 299)):
        keys = torch.arange(total)[None]
        by_place = relative(total, start)
        between = relative.between(keys[:, start:], keys)
        assert by_place.shape == (1, 4, total - start, total)
        assert torch.equal(by_place, between)
        weights = torch.randn(by_place.shape, generator=torch.Generator().manual_seed(0))
        gradients = [
            torch.autograd.grad((bias * weights).sum(), relative.weight)[0] for bias in (by_place, between)
        ]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["relative_encoder", "relative_decoder"])
def test_given_positions_are_followed(name: str) -> None:
    """Positions of a row twice as far apart are as far apart as they say."""
    model = small_model(name)
    ids = random_ids(2, 9)
    attention = native_attention(model)
    base = logits_of(model, Batch(ids, attention=attention))
    along = torch.arange(9).expand(2, -1)
    torch.testing.assert_close(
        logits_of(model, Batch(ids, position_ids=along + 3, attention=attention)), base
    )
    assert not torch.allclose(logits_of(model, Batch(ids, position_ids=2 * along, attention=attention)), base)
