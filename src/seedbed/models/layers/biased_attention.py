"""Attention whose scores get something added that depends on distance: what XLNet's and DeBERTa's have in common.

The two are in `relative_attention.py` and `disentangled_attention.py`. Both keep to one form, softmax(q k' / sqrt(K) + bias) v
with a bias per head, so the products and the softmax are those of every other model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from seedbed.models.cache import Cache
from seedbed.models.layers.attention import Attention, AttentionPlan, ValueMix, attend
from seedbed.models.layers.dropout import QUERY_SITES, Dropout

__all__ = ["BiasedAttention", "BiasedPlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasedPlan(AttentionPlan):
    """Add the distances of a batch; made once and shared by all layers.

    Attributes:
        table: (P, D) vectors of the P distances (or buckets of distances) told apart.
        index: (1, 1, T, S) int64 row of the table for each query and key, or None where it follows from the places alone.
        query_index: (B, 1, Q, S), the same for the query stream, or None.
    """

    table: Tensor
    index: Tensor | None = None
    query_index: Tensor | None = None


class BiasedAttention(Attention):
    """Attend with a bias per head, query and key. Always unfused."""

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan,
        *,
        layer: int,
        stream: Tensor | None = None,
        cache: Cache | None = None,
        dropout: Dropout | None = None,
        capture: Collection[str] = (),
        at: Tensor | None = None,
        values: ValueMix | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return the content's output (B, T, D), the query stream's (B, Q, D) if `stream` is given, and captures.

        As `Attention.forward`. Captured queries and keys are those of the content, without anything for distance; captured
        probabilities have everything.
        """
        assert isinstance(plan, BiasedPlan)
        assert values is None, "a description refuses value_residual here"
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, T, K)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        captured = {
            name: value
            for name, value in ((f"query.{layer}", q), (f"key.{layer}", k), (f"value.{layer}", v))
            if name in capture
        }
        distances = self.distances(k, plan)
        q, bias = self.meet(q, distances, plan, is_query=False)
        bias = bias if plan.bias is None else bias + plan.bias
        mixed, probabilities = attend(q, k, v, bias, dropout=dropout, site=3 * layer)
        if f"attention.{layer}" in capture:
            captured[f"attention.{layer}"] = probabilities
        mixed = mixed.transpose(1, 2).flatten(2)
        out = self.output(mixed if at is None else mixed.flatten(0, 1).index_select(0, at))

        answer = None
        if stream is not None:
            assert plan.query is not None
            rows = self.num_heads * self.head_dim
            offset = self.qkv.bias[:rows] if self.qkv.bias is not None else None
            g = F.linear(stream, self.qkv.weight[:rows], offset).view(*stream.shape[:2], self.num_heads, -1)
            g, bias = self.meet(g.transpose(1, 2), distances, plan, is_query=True)
            mixed, _ = attend(g, k, v, bias + plan.query.bias, dropout=dropout, site=QUERY_SITES + 3 * layer)
            answer = self.output((mixed * plan.query.sees).transpose(1, 2).flatten(2))
        return out, answer, captured

    def distances(self, k: Tensor, plan: BiasedPlan) -> Any:
        """Return what both streams need of the distances in this layer, computed once."""
        raise NotImplementedError

    def meet(self, q: Tensor, distances: Any, plan: BiasedPlan, *, is_query: bool) -> tuple[Tensor, Tensor]:
        """Return queries (B, H, T, K) as they meet the keys, and what is added to the scaled scores, (B, H, T, S)."""
        raise NotImplementedError
