"""Where a token stands: position ids, and rotary tables made from them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["restarting_positions", "rotary_table", "rotate"]


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
