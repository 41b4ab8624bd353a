"""Where a token stands: position ids, and what is made from them (rotary and sinusoidal tables, distance biases)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "alibi_bias",
    "alibi_slopes",
    "restarting_positions",
    "rotary_table",
    "rotate",
    "sinusoidal_table",
]


def restarting_positions(segment_ids: Tensor) -> Tensor:
    """Return (B, T) int64 positions that start at 0 where a new segment begins."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    is_start = torch.ones_like(segment_ids, dtype=torch.bool)
    is_start[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return index - torch.where(is_start, index, 0).cummax(dim=1).values


def rotary_table(
    position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines, (..., K) each, for `rotate`.

    Angles are float32 (pairs are channel i and i + K/2, as in GPT-NeoX and Llama) and cast last. Computed anew for every
    batch: T * K values, shared by all layers, so no table has to be kept, moved or cast with the model.
    Source: RoFormer, 2104.09864.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angles = position_ids[..., None].float() * (1.0 / theta**steps)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate (..., K) by a table that broadcasts against it."""
    cos, sin = table
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def sinusoidal_table(position_ids: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the fixed position vectors (..., D): sine in even channels, cosine in odd ones.

    Channels 2i and 2i + 1 have wavelength 2 pi 10000^(2i / D). Computed anew for every batch, so no row is too long for it.
    Source: 1706.03762, section 3.5.
    """
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=position_ids.device) / width
    angles = position_ids[..., None].float() * (1.0 / 10_000.0**steps)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :width].to(dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """Return the slope of each head: 2^(-8/H), 2^(-16/H), ..., 2^-8 when H is a power of two.

    Otherwise the slopes of the next lower power of two P, then every second one of 2 P until there are H.
    Source: 2108.12409, section 3, and its published code for other numbers of heads.
    """
    power = 1 << math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)][: num_heads - power]


def alibi_bias(own: Tensor, theirs: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """Return (B or 1, H, T, S), minus slope times distance, to be added to attention scores.

    Args:
        own: (B or 1, T) positions of those who attend.
        theirs: (B or 1, S) positions of those attended.
        num_heads: H.
        dtype: of the result; computed in float32.

    Source: 2108.12409. Differs from it: the paper has causal models only. Here the distance is |i - j|, so that an encoder is
    penalised the same in both directions; under a causal mask this is the paper's bias.
    """
    slopes = torch.tensor(alibi_slopes(num_heads), device=own.device)
    distance = (own[:, :, None] - theirs[:, None, :]).abs().float()
    return (-slopes[:, None, None] * distance[:, None]).to(dtype)
