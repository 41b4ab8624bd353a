from __future__ import annotations

import torch

from seedbed.models.layers.position import restarting_positions, rotary_table, rotate


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
