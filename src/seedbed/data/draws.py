"""Draw for rows: what is masked, which replacement, keyed by where in the data it happens.

A draw depends on (seed, view, epoch, row, position, purpose) alone: not on the batch it falls into, the number of
workers, the device or what was drawn before. The hash is in `hashing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seedbed.hashing import fold, key_from

__all__ = ["Draws"]


@dataclass(frozen=True, slots=True)
class Draws:
    """Hand out draws for the rows of one micro-batch.

    Attributes:
        row_keys: (B,) int32, one key a row: (seed, view, epoch, row) folded.
    """

    row_keys: Tensor

    @staticmethod
    def for_rows(seed: int, view: str, epochs: Tensor, rows: Tensor) -> Draws:
        """Key draws by seed, view name, epochs (B,) int64 and row numbers (B,) int64."""
        return Draws(fold(fold(key_from(seed, view, device=rows.device), epochs), rows))

    def positions(self, purpose: str, length: int) -> Tensor:
        """Return one uniform int32 for each row and position, (B, length)."""
        index = torch.arange(length, dtype=torch.int32, device=self.row_keys.device)
        return fold(self._keys(purpose)[:, None], index[None, :])

    def rows(self, purpose: str) -> Tensor:
        """Return one uniform int32 for each row, (B,)."""
        return fold(self._keys(purpose), 0)

    def integers(self, purpose: str, length: int, bound: int) -> Tensor:
        """Return one uniform integer in [0, bound) for each row and position, (B, length) int64.

        BIAS: the high bits of a 32-bit product are taken; for a bound of 50,000 some values come up more often than
        others by at most 1 part in 85,000.
        """
        unsigned = self.positions(purpose, length).to(torch.int64) & 0xFFFFFFFF
        return (unsigned * bound) >> 32

    def _keys(self, purpose: str) -> Tensor:
        return fold(self.row_keys, key_from(purpose, device=self.row_keys.device))
