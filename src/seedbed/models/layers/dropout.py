"""Drop values by a counter hash of where they are, not by a generator's state.

A value's fate is a function of (key, site, row, position, channel), so it depends neither on how rows were cut into
micro-batches, nor on the device, nor on what was drawn before. On a CPU this also costs a fraction of `F.dropout`,
whose serial generator takes longer than the matrix product beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seedbed.hashing import fold, threshold

__all__ = ["QUERY_SITES", "Dropout", "keep_mask"]

QUERY_SITES = 1 << 16
"""Where the dropout sites of the query stream begin."""

_DEPTH_SITES = 1 << 24
"""Beyond any column of a row, with which they share a hash."""

_M1, _M2 = 0x2C1B3C6D, 0x297A2D39


def keep_mask(places: Tensor, channels: Tensor, width: int, rate: float) -> Tensor:
    """Return the int16 (..., width) mask, 1 where a value stays, which it does with probability 1 - rate.

    Args:
        places: (...,) int32 hashes, one per vector of values.
        channels: (ceil(width / 2),) int32 hashes.
        width: values per vector.
        rate: share dropped, exact to 2^-16.

    Both inputs are full hashes; their exclusive or is scrambled by two multiplications and a shift, and each 32-bit
    result serves two channels, 16 bits each. So a value costs half an integer hash. The mask is int16, not bool: on a
    CPU, comparing into bool takes ten times as long (0.47 against 0.05 ms for a million values), and converting bool to
    bfloat16 1.0 ms against 0.1.
    """
    h = places[..., None] ^ channels
    h.mul_(_M1)
    h = (h ^ (h >> 15)).mul_(_M2)
    pairs = h.view(torch.int16)[..., :width]
    return torch.ge(pairs, round(rate * 65536) - 32768, out=torch.empty_like(pairs))


@dataclass(frozen=True, slots=True)
class Dropout:
    """Drop hidden values and attention probabilities of one forward pass.

    Attributes:
        key: 0-d int32 key of the pass (seed, step, pass, module).
        row_ids: (B,) unique ids of the rows.
        hidden_rate: share of hidden values dropped.
        attention_rate: share of attention probabilities dropped.
        depth_rate: share of rows for which the last layer's sublayers are left out, see `sublayer`.
        num_layers: L, for the rates of the layers before it.
        first_head: number of the first head of attention probabilities, where workers share the heads.
    """

    key: Tensor
    row_ids: Tensor
    hidden_rate: float
    attention_rate: float
    depth_rate: float = 0.0
    num_layers: int = 1
    first_head: int = 0

    def places(self, columns: Tensor) -> Tensor:
        """Return int32 hashes (B, T) of rows and positions; `columns` is (T,) or (B, T). Made once, shared by all sites."""
        return fold(fold(self.key, self.row_ids)[:, None], columns)

    def hidden(self, values: Tensor, *, site: int, places: Tensor, at: Tensor | None = None) -> Tensor:
        """Drop hidden values of a site; those kept are scaled by 1 / (1 - rate).

        Args:
            values: (B, T, D), or (N, D) with `at`.
            site: which sublayer.
            places: (B, T) of these values, from `places`.
            at: (N,) flat positions into (B * T).
        """
        if not self.hidden_rate:
            return values
        if at is not None:
            places = places.flatten()[at]
        return self._apply(values, fold(places, site), self.hidden_rate)

    def sublayer(
        self, values: Tensor, *, site: int, layer: int, length: int, at: Tensor | None = None
    ) -> Tensor:
        """Leave out what a sublayer adds, for whole rows; where it stays it is scaled by 1 / (1 - rate).

        Source: stochastic depth, G. Huang et al., arXiv 1603.09382, with its linear schedule: layer l of L (from 1) has the rate
        l / L times that of the last. Differs from it: attention and feed-forward are left out apart, and scaling happens while
        training, so that a finished model needs to know nothing of it.

        Args:
            values: (B, T, D), or (N, D) with `at`.
            site: which sublayer.
            layer: its depth, from 0.
            length: T.
            at: (N,) flat positions into (B * T).
        """
        rate = self.depth_rate * (layer + 1) / self.num_layers
        if not rate:
            return values
        draws = fold(fold(self.key, self.row_ids), _DEPTH_SITES + site)
        scale = (draws >= threshold(rate)).to(values.dtype) / (1 - rate)
        return values * (scale[:, None, None] if at is None else scale[at // length][:, None])

    def attention(self, probabilities: Tensor, *, site: int) -> Tensor:
        """Drop attention probabilities (B, H, T, S), keyed by (row, head, query, key)."""
        if not self.attention_rate:
            return probabilities
        _, heads, length, _ = probabilities.shape
        device = probabilities.device
        places = fold(
            fold(self.key, self.row_ids)[:, None], self.first_head + torch.arange(heads, device=device)
        )
        places = fold(places[..., None], torch.arange(length, device=device))
        return self._apply(probabilities, fold(places, site), self.attention_rate)

    def _apply(self, values: Tensor, places: Tensor, rate: float) -> Tensor:
        width = values.shape[-1]
        pairs = torch.arange((width + 1) // 2, dtype=torch.int32, device=values.device)
        keep = keep_mask(places, fold(self.key, pairs), width, rate)
        return values * keep.to(values.dtype).mul_(1 / (1 - rate))
