"""DeBERTa's attention: content meets position and position meets content (2006.03654, section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.config import TransformerConfig
from seedbed.models.layers.attention import AttentionPlan
from seedbed.models.layers.biased_attention import BiasedAttention, BiasedPlan, shift

__all__ = ["DisentangledAttention", "DisentangledPlan", "bucket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DisentangledPlan(BiasedPlan):
    """Say which vector of the table stands for which distance.

    Attributes:
        table: (P, D) vectors of the buckets that occur in rows this long.
        query_rows: (S + T,) int64 row of the table for the distances i - j = S, ..., 1 - T of queries i from keys j.
        key_rows: (S + T,) int64, the same for the distances j - i = T, ..., 1 - S of keys from queries.
        query_index: (B, 1, Q, S), the query stream's columns in `query_rows`, or None.
        key_index: (B, 1, S, Q), its columns in `key_rows`, or None.
    """

    query_rows: Tensor
    key_rows: Tensor
    key_index: Tensor | None = None


class DisentangledAttention(BiasedAttention):
    """Score keys by content, by the query's content against their distance, and by their content against the distance.

    (q_i k_j + q_i Kr_d + k_j Qr_d) / sqrt(n K), for the bucket d of i - j and n terms. Kr and Qr come from one table of
    distance vectors, through the projections of the content (`share_position_projections`, v3) or through projections of
    their own. The third term reads the bucket of i - j, as the released code; the paper has j - i.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        width = config.num_heads * config.head_dim
        self.has_query_term = config.content_to_position
        self.has_key_term = config.position_to_content
        shared = config.share_position_projections
        own_key, own_query = not shared and self.has_query_term, not shared and self.has_key_term
        self.position_key = nn.Linear(config.hidden_size, width) if own_key else None
        self.position_query = nn.Linear(config.hidden_size, width) if own_query else None

    def distances(self, k: Tensor, plan: AttentionPlan) -> tuple[Tensor | None, Tensor | None]:
        """Return the keys of the distances (H, K, S + T), and scores of all keys' content against them (H, B, S, S + T)."""
        assert isinstance(plan, DisentangledPlan)
        keys = scores = None
        if self.has_query_term:
            keys = self._project(plan.table, self.position_key, part=1).index_select(2, plan.query_rows)
        if self.has_key_term:
            batch, heads, total, head_dim = k.shape
            queries = self._project(plan.table, self.position_query, part=0).index_select(2, plan.key_rows)
            by_head = k.transpose(0, 1).reshape(heads, -1, head_dim)
            scores = torch.bmm(by_head * self._scale, queries).view(heads, batch, total, -1)
        return keys, scores

    def distance_bias(
        self, q: Tensor, distances: tuple[Tensor | None, Tensor | None], plan: BiasedPlan, *, is_query: bool
    ) -> tuple[Tensor, Tensor]:
        """Return q for the smaller scale, and the scaled scores of the two terms with distances."""
        assert isinstance(plan, DisentangledPlan)
        keys, key_scores = distances
        batch, heads, length, head_dim = q.shape
        terms = []
        if keys is not None:
            by_head = q.transpose(0, 1).reshape(heads, -1, head_dim)
            scores = torch.bmm(by_head * self._scale, keys).view(heads, batch, length, -1)
            terms.append(_pick(scores, plan.query_index) if is_query else shift(scores))
        if key_scores is not None:
            by_key = _pick(key_scores, plan.key_index) if is_query else shift(key_scores)
            terms.append(by_key.transpose(2, 3))
        bias = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return q * (self._scale * math.sqrt(head_dim)), bias.transpose(0, 1)

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.head_dim * (1 + self.has_query_term + self.has_key_term))

    def _project(self, table: Tensor, own: nn.Linear | None, *, part: int) -> Tensor:
        """Return (H, K, P) by a projection of its own, or by that of the content's queries (part 0) or keys (1)."""
        if own is not None:
            out: Tensor = own(table.to(own.weight.dtype))
        else:
            width = self.num_heads * self.head_dim
            rows = slice(part * width, (part + 1) * width)
            bias = self.qkv.bias[rows] if self.qkv.bias is not None else None
            out = F.linear(table.to(self.qkv.weight.dtype), self.qkv.weight[rows], bias)
        return out.view(-1, self.num_heads, self.head_dim).permute(1, 2, 0)


def _pick(scores: Tensor, index: Tensor | None) -> Tensor:
    """Return the columns (H, B, N, M) of scores (H, B, N, P) that an index (B, 1, N, M) names."""
    assert index is not None
    return scores.gather(3, index.transpose(0, 1).expand(scores.shape[0], -1, -1, -1))


def bucket(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Return int64 buckets of int64 distances: themselves up to half the buckets, logarithmically coarser beyond.

    Args:
        distances: of any sign; the bucket has the same.
        num_buckets: buckets to each side; 0: every distance is its own.
        max_distance: where the last bucket ends.

    Computed in float32, in the order of the released code, so that no distance lands in another bucket.
    Source: 2111.09543 keeps the form of DeBERTa-v2's code; the first paper has no buckets.
    """
    if not num_buckets:
        return distances
    middle = num_buckets // 2
    far = distances.abs()
    log = torch.log(far.clamp(min=1) / middle) / torch.log(torch.tensor((max_distance - 1) / middle))
    coarse = torch.ceil(log * (middle - 1)) + middle
    return torch.where(far <= middle, distances, (coarse * distances.sign()).long())
