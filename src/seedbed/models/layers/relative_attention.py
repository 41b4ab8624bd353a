"""XLNet's attention: content, distance and sentence each have a query of their own (1906.08237; 1901.02860, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seedbed.models.config import TransformerConfig
from seedbed.models.layers.attention import AttentionPlan
from seedbed.models.layers.biased_attention import BiasedAttention, BiasedPlan, shift

__all__ = ["RelativeAttention", "RelativePlan", "sinusoids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativePlan(BiasedPlan):
    """Add which tokens are of different types.

    Attributes:
        table: (S + T, D) sinusoids of the distances S, S - 1, ..., 1 - T.
        differs: (B, 1, T, S) 1.0 where query and key have different token types, or None.
        query_differs: (B, 1, Q, S), the same for the query stream, or None.
    """

    differs: Tensor | None = None
    query_differs: Tensor | None = None


class RelativeAttention(BiasedAttention):
    """Score keys by content, by distance and by whether they are of the query's sentence.

    (q_i + u) k_j + (q_i + w) W r_(i-j) + (q_i + s) e_(same or not), divided by sqrt(K). `content_query` is u ("r_w_bias" in
    the released code), `position_query` w ("r_r_bias"), `segment_query` s ("r_s_bias"), `segment` e, `relative` W. They are
    flat (H * K,), so that optimizers take them for offsets, which do not decay, as in the released code.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        width = config.num_heads * config.head_dim
        self.relative = nn.Linear(config.hidden_size, width, bias=False)
        self.content_query = nn.Parameter(torch.zeros(width))
        self.position_query = nn.Parameter(torch.zeros(width))
        self.segment_query = nn.Parameter(torch.zeros(width))
        self.segment = nn.Parameter(torch.zeros(2, width))

    def distances(self, k: Tensor, plan: AttentionPlan) -> Tensor:
        """Return the keys of the distances, (H, K, P)."""
        assert isinstance(plan, BiasedPlan)
        keys: Tensor = self.relative(plan.table.to(self.relative.weight.dtype))
        return keys.view(-1, self.num_heads, self.head_dim).permute(1, 2, 0)

    def distance_bias(
        self, q: Tensor, distances: Tensor, plan: BiasedPlan, *, is_query: bool
    ) -> tuple[Tensor, Tensor]:
        """Return q + u and the scaled scores of distance and sentence."""
        assert isinstance(plan, RelativePlan)
        batch, heads, length, head_dim = q.shape
        scale = head_dim**-0.5
        # All rows of the batch in one product per head: the keys of the distances are the same for every row.
        by_head = (q + self._heads(self.position_query, q)).transpose(0, 1).reshape(heads, -1, head_dim)
        scores = torch.bmm(by_head * scale, distances).view(heads, batch, length, -1)
        if is_query:
            assert plan.query_index is not None
            index = plan.query_index.transpose(0, 1).expand(heads, -1, -1, -1)
            bias = scores.gather(3, index).transpose(0, 1)
            differs = plan.query_differs
        else:
            bias = shift(scores).transpose(0, 1)
            differs = plan.differs
        if differs is not None:
            # A constant per query changes no softmax, so only the difference of the two vectors counts.
            other = self._heads(self.segment[1] - self.segment[0], q)
            extra = (q + self._heads(self.segment_query, q)) * (other * scale)
            bias = bias + extra.sum(-1, keepdim=True) * differs.to(q.dtype)
        return q + self._heads(self.content_query, q), bias

    def _heads(self, flat: Tensor, like: Tensor) -> Tensor:
        return flat.view(self.num_heads, 1, self.head_dim).to(like.dtype)


def sinusoids(distances: Tensor, width: int) -> Tensor:
    """Return (P, D) float32 sines, then cosines, of distances (P,), wavelengths from 2 pi to 20000 pi."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=distances.device) / width)
    angles = distances[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)
