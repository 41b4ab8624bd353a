"""Attention whose scores get something added that depends on distance: what XLNet's and DeBERTa's have in common.

The two are in `relative_attention.py` and `disentangled_attention.py`. Both keep to one form, softmax(q k' / sqrt(K) + bias) v
with a bias per head, so the products and the softmax are those of every other model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from seedbed.models.layers.attention import Attention, AttentionPlan

__all__ = ["BiasedAttention", "BiasedPlan", "shift"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasedPlan(AttentionPlan):
    """Add the distances of a batch; made once and shared by all layers.

    Attributes:
        table: (P, D) vectors of the P distances told apart.
        query_index: (B, 1, Q, S) int64 column of each query (of the second stream) and key among scores by distance, or None.
    """

    table: Tensor
    query_index: Tensor | None = None


class BiasedAttention(Attention, ABC):
    """Attend with a bias per head, query and key. Never fused, and both streams drop probabilities."""

    drops_query_stream = True

    def meet(
        self, q: Tensor, distances: Any, plan: AttentionPlan, *, is_query: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the queries and the bias of their distances, with the mask added to it."""
        assert isinstance(plan, BiasedPlan)
        q, bias = self.distance_bias(q, distances, plan, is_query=is_query)
        q, mask = super().meet(q, distances, plan, is_query=is_query)
        return q, bias if mask is None else bias + mask

    @abstractmethod
    def distance_bias(
        self, q: Tensor, distances: Any, plan: BiasedPlan, *, is_query: bool
    ) -> tuple[Tensor, Tensor]:
        """Return queries (B, H, T, K) as they meet the keys, and what distances add to the scaled scores, (B, H, T, S)."""


def shift(scores: Tensor) -> Tensor:
    """Turn scores by distance (..., N, N + M) into scores by place (..., N, M).

    Row n and column m are at the distance r + n - m, for some r; the scores are of the distances r + N, ..., r - M + 1, so
    theirs is in column N - n + m. Read along the flat rows, each row starts one column earlier than the one before, so a
    view does it: no index, nothing copied (1901.02860, appendix B).
    """
    length = scores.shape[-2]
    rows = scores.flatten(-2)[..., length:].view(*scores.shape[:-1], scores.shape[-1] - 1)
    return rows[..., : scores.shape[-1] - length]
