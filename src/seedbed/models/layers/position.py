"""Where a token stands: position ids, and what is made from them (rotary and sinusoidal tables, distance biases)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.config import TransformerConfig

__all__ = [
    "RelativePositions",
    "alibi_bias",
    "alibi_slopes",
    "relative_buckets",
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
    position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines, (..., K) each, for `rotate`.

    Angles are float32 (pairs are channel i and i + K/2, as in GPT-NeoX and Llama) and cast last. Computed anew for every
    batch: T * K values, shared by all layers, so no table has to be kept, moved or cast with the model. Positions are divided
    by `scale`.
    Source: RoFormer, 2104.09864.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angles = position_ids[..., None].float() * (1.0 / (theta**steps * scale))
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
    # Filled one by one: a copy of a list would make a GPU's step wait.
    slopes = torch.stack([torch.full((), slope, device=own.device) for slope in alibi_slopes(num_heads)])
    distance = (own[:, :, None] - theirs[:, None, :]).abs().float()
    return (-slopes[:, None, None] * distance[:, None]).to(dtype)


def relative_buckets(
    distances: Tensor, *, num_buckets: int, max_distance: int, is_bidirectional: bool
) -> Tensor:
    """Return the bucket of each distance, key position minus query position; int64 of the same shape.

    Short distances have a bucket each, longer ones share buckets that widen logarithmically up to `max_distance`, and all
    beyond share the last. Bidirectional: one half of the buckets for keys to the left, the other for keys to the right;
    otherwise all keys to the right share bucket 0 with the token itself.

    The logarithm is float32, as in every implementation the published weights were trained with: a distance exactly between
    two buckets falls where it falls there.
    Source: T5 (1910.10683, section 2.1), after Shaw et al. (1803.02155).
    """
    offset = torch.zeros_like(distances)
    if is_bidirectional:
        num_buckets //= 2
        offset = (distances > 0).to(distances.dtype) * num_buckets
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    num_exact = num_buckets // 2
    ratio = (distances.float() / num_exact).clamp(
        min=1.0
    )  # The clamp only touches what the exact buckets serve.
    far = num_exact + (ratio.log() / math.log(max_distance / num_exact) * (num_buckets - num_exact)).long()
    return offset + torch.where(distances < num_exact, distances, far.clamp(max=num_buckets - 1))


class RelativePositions(nn.Module):
    """Learn one bias per head and bucket of distances, shared by the layers of a stack."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_buckets = config.relative_buckets
        self.max_distance = config.relative_max_distance
        self.is_bidirectional = not config.is_causal
        self.weight = nn.Parameter(torch.zeros(config.relative_buckets, config.num_heads))

    def forward(self, total: int, start: int = 0) -> Tensor:
        """Return the bias (1, H, T, S) of tokens `start` to `total` towards all S = `total`, by their place in the row.

        A diagonal of it is one value, so S + T - 1 values are looked up, not S * T, and the rest is a view.
        """
        length = total - start
        distances = torch.arange(1 - total, length, device=self.weight.device)
        by_distance = self._look_up(distances).T  # (H, S + T - 1)
        return by_distance.unfold(1, total, 1).flip(1)[None]

    def between(self, own: Tensor, theirs: Tensor) -> Tensor:
        """Return the bias (B or 1, H, T, S) of tokens at positions (B or 1, T) towards keys at positions (B or 1, S)."""
        return self._look_up(theirs[:, None, :] - own[:, :, None]).permute(0, 3, 1, 2)

    def _look_up(self, distances: Tensor) -> Tensor:
        buckets = relative_buckets(
            distances,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            is_bidirectional=self.is_bidirectional,
        )
        return F.embedding(buckets, self.weight)
