"""Compute the order of rows: a keyed permutation, so that nothing is shuffled, stored or skipped over.

The row at place `i` of epoch `e` is `permute(i)`, in constant memory for any number of rows. Resuming is arithmetic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["KeyedPermutation", "place_of"]

_ROUNDS = 6


class KeyedPermutation:
    """Permute 0..size-1 by a key, without tables: a balanced Feistel network with cycle walking.

    Values outside the range are walked on until they fall inside; the domain is less than four times the size, so
    that takes fewer than four rounds on average. Six Feistel rounds of the 32-bit `lowbias32` finaliser: enough that
    no test of ours tells orders from uniform ones, not a cipher.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking).
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        self.size = size
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._shift = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        rounds = np.arange(_ROUNDS, dtype=np.uint64)
        low, high = np.uint64(key & 0xFFFFFFFF), np.uint64((key >> 32) & 0xFFFFFFFF)
        self._keys = _mix(
            _mix(low + rounds * np.uint64(0x9E3779B9)) ^ _mix(high + rounds * np.uint64(0x85EBCA6B))
        )

    def __call__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where each index goes.

        Args:
            index: int64 array of any shape, values in [0, size).
        """
        value = self._encrypt(np.asarray(index, dtype=np.uint64))
        outside = value >= self.size
        while outside.any():
            value[outside] = self._encrypt(value[outside])
            outside = value >= self.size
        return value.astype(np.int64)

    def _encrypt(self, value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = value >> self._shift, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._shift) | right


def place_of(
    position: int | npt.NDArray[np.int64], num_rows: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split running positions into (epoch, place within the epoch)."""
    epoch, place = np.divmod(np.asarray(position, dtype=np.int64), num_rows)
    return epoch, place


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply `lowbias32` to the low and, folded in, the high 32 bits."""
    x = (x ^ (x >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    x = x ^ (x >> np.uint64(16))
    x = (x * np.uint64(0x7FEB352D)) & np.uint64(0xFFFFFFFF)
    x = x ^ (x >> np.uint64(15))
    x = (x * np.uint64(0x846CA68B)) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))
