"""Hash integers to integers: the one source of randomness, with no generator state anywhere.

A draw is `fold(fold(key, a), b)`: a 32-bit counter hash of where it happens. Every operation is int32 arithmetic that
wraps, so the bits are the same on every device, eager or compiled. Draws are compared with integer thresholds, never
turned into floats, for the same reason. The data side keys them in `data/draws.py`, dropout in
`models/layers/dropout.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_device", "fold", "key_from", "mix", "threshold", "uniform_values"]

_GOLDEN = 0x9E3779B9


def _signed(value: int) -> int:
    """Return the int32 with the low 32 bits of `value`."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


_M1 = _signed(0x7FEB352D)
_M2 = _signed(0x846CA68B)


def mix(x: Tensor) -> Tensor:
    """Scramble int32 values, a bijection: the `lowbias32` finaliser (C. Wellons, hash-prospector, 2018).

    Torch shifts int32 arithmetically, hence the masks.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _M1
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _M2
    return x ^ ((x >> 16) & 0xFFFF)


def fold(key: Tensor, part: Tensor | int) -> Tensor:
    """Mix one more coordinate into a key; shapes broadcast.

    `part` is an int32 tensor, an int64 tensor or an int, not negative; the same value gives the same bits in each form.
    """
    if isinstance(part, int):
        low, high = part & 0x7FFFFFFF, (part >> 31) & 0x7FFFFFFF
        folded = mix(mix(key) + _signed(low * _GOLDEN))
        return fold(folded, high) if high else folded
    if part.dtype == torch.int64:
        low_word, high_word = (part & 0x7FFFFFFF).to(torch.int32), ((part >> 31) & 0x7FFFFFFF).to(torch.int32)
        folded = fold(key, low_word)
        return torch.where(high_word != 0, fold(folded, high_word), folded)
    return mix(mix(key) + part * _signed(_GOLDEN))


def key_from(*parts: int | str, device: torch.device | str = "cpu") -> Tensor:
    """Return a 0-d int32 key from integers and names (a name counts as the bytes of its UTF-8 form)."""
    key = torch.zeros((), dtype=torch.int32, device=device)
    for part in parts:
        if isinstance(part, str):
            data = part.encode("utf-8")
            key = fold(key, len(data))
            for start in range(0, len(data), 3):
                key = fold(key, int.from_bytes(data[start : start + 3], "little"))
        else:
            key = fold(key, part)
    return key


def at_device(key: Tensor, device: torch.device | str) -> Tensor:
    """Return a 0-d key of the host on a device; unlike a copy from unpinned memory this makes no GPU wait."""
    return torch.full((), int(key), dtype=key.dtype, device=device)


def threshold(probability: float) -> int:
    """Return the int32 bound for which `draw < bound` happens with this probability for uniform int32 draws.

    Exact to 2^-32. A probability of 1 cannot be expressed with `<` on int32 and is refused: leave the draw away.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"a probability must be in [0, 1), not {probability}")
    return round(probability * 2**32) - 2**31


def uniform_values(key: Tensor, row_ids: Tensor, length: int, width: int) -> Tensor:
    """Return (B, length, width) float32 in [-1, 1], each a function of (key, row, position, channel).

    For what is a number by nature (the start of a disturbance); choices are made with `threshold`.
    """
    positions = torch.arange(length, dtype=torch.int32, device=row_ids.device)
    channels = torch.arange(width, dtype=torch.int32, device=row_ids.device)
    places = fold(fold(key, row_ids)[:, None], positions)
    return fold(places[..., None], channels).to(torch.float32) / 2**31
