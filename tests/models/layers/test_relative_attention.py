from __future__ import annotations

import math

import pytest
import torch

from seedbed.models.layers.relative_attention import sinusoids


def test_sinusoids_are_sines_then_cosines() -> None:
    table = sinusoids(torch.tensor([-3, 0, 5]), 6)
    for row, distance in enumerate((-3, 0, 5)):
        for pair in range(3):
            angle = distance / 10_000 ** (2 * pair / 6)
            assert float(table[row, pair]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[row, 3 + pair]) == pytest.approx(math.cos(angle), abs=1e-6)
