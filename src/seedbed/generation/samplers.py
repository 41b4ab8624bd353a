"""Choose the next token from logits: greedy, or a seeded draw after temperature, top-k and top-p.

A draw is a counter hash of (seed, row, step), so a text does not depend on what else is in its batch, nor on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seedbed.errors import ConfigError
from seedbed.hashing import fold, key_from

__all__ = ["Sampler", "keep_top"]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Say how tokens are chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token, whatever the rest says.
        top_k: keep the k most probable tokens; 0: all.
        top_p: keep the fewest most probable tokens that together reach this probability; 1: all.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(
                f"temperature {self.temperature} is negative.",
                hint="0 is greedy, 1 leaves the model as it is",
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k {self.top_k} is negative.", hint="0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is not in (0, 1].", hint="1 keeps all tokens")

    def __call__(self, logits: Tensor, *, rows: Tensor, step: int) -> Tensor:
        """Choose one token per row.

        Args:
            logits: (B, V).
            rows: (B,) int64 numbers of the texts, what their draws are keyed by.
            step: how many tokens were written before.

        Returns:
            (B,) int64 ids.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        # On the CPU: cumulative sums of floats are not deterministic on a GPU, and a row of logits is small.
        device, logits = logits.device, logits.float().cpu()
        # From the top down, so that a tiny temperature gives minus infinity and never infinity minus infinity.
        scaled = (logits - logits.max(-1, keepdim=True).values) / self.temperature
        kept = keep_top(scaled, top_k=self.top_k, top_p=self.top_p)
        probabilities = kept.softmax(-1, dtype=torch.float64)
        # The inverse of the cumulative distribution at a hashed point of (0, 1).
        draws = fold(fold(key_from("sampler", self.seed), rows.cpu()), step)
        points = (draws.to(torch.float64) + 2**31 + 0.5) / 2**32
        cumulative = probabilities.cumsum(-1)
        chosen = torch.searchsorted(cumulative, points[:, None] * cumulative[:, -1:], right=True)
        return chosen[:, 0].clamp_(max=logits.shape[-1] - 1).to(device)


def keep_top(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Return logits (B, V) with all but the kept tokens at minus infinity; top-p acts on what top-k left.

    The token that crosses `top_p` is kept, so at least one always is. Of equal logits at the edge, the lower id stays.
    """
    if top_k == 0 and top_p == 1:
        return logits
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k:
        values[:, top_k:] = float("-inf")
    if top_p < 1:
        probabilities = values.softmax(-1, dtype=torch.float64)
        before = probabilities.cumsum(-1) - probabilities
        values = values.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(1, order, values)
