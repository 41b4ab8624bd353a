from __future__ import annotations

import math

import pytest
import torch

from seedbed.models.layers.relative_attention import shift, sinusoids


@pytest.mark.parametrize(("length", "total"), [(1, 1), (1, 5), (4, 4), (3, 7)])
def test_shift_finds_the_column_of_every_distance(length: int, total: int) -> None:
    distances = torch.arange(total, -length, -1)
    scores = distances.expand(2, 3, length, -1).contiguous()
    found = shift(scores)
    i, j = torch.arange(total - length, total), torch.arange(total)
    assert torch.equal(found, (i[:, None] - j).expand(2, 3, -1, -1))


def test_sinusoids_are_sines_then_cosines() -> None:
    table = sinusoids(torch.tensor([-3, 0, 5]), 6)
    for row, distance in enumerate((-3, 0, 5)):
        for pair in range(3):
            angle = distance / 10_000 ** (2 * pair / 6)
            assert float(table[row, pair]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[row, 3 + pair]) == pytest.approx(math.cos(angle), abs=1e-6)
