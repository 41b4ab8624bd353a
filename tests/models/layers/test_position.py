from __future__ import annotations

import math

import pytest
import torch

from seedbed.models.layers.position import (
    alibi_bias,
    alibi_slopes,
    restarting_positions,
    rotary_table,
    rotate,
    sinusoidal_table,
)


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
