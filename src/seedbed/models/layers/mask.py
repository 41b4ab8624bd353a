"""Decide who attends whom in a batch, once, for all layers.

The rules are those of `Batch`. A place always attends itself, padding attends padding, so no row of a mask is empty and
no softmax meets only minus infinity; the query stream, where a row can be empty, says so in `is_blind`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models.cache import Cache
from seedbed.models.layers.blocked_attention import Reach

__all__ = ["QueryPlan", "additive", "may_attend", "may_read", "query_plan", "reach_of", "within_window"]


def may_attend(batch: Batch, segment_ids: Tensor, cache: Cache | None, start: int) -> Tensor | None:
    """Return bool (B or 1, T, S), true where a new token may attend a token so far; None: everyone attends everyone.

    Args:
        batch: the new tokens.
        segment_ids: their segments, (B, T).
        cache: holds the marks of all S tokens, the new ones included; None: S is T.
        start: tokens before the new ones.
    """
    keys = segment_ids if cache is None else cache.segment_ids[:, : cache.length]
    allowed: Tensor | None = None
    if batch.is_segmented:
        allowed = segment_ids[:, :, None] == keys[:, None, :]
    elif batch.has_padding:
        allowed = (segment_ids > 0)[:, :, None] == (keys > 0)[:, None, :]
    order: Tensor | None = None
    if batch.attention == "causal":
        index = torch.arange(keys.shape[1], device=keys.device)
        order = index[None, start:, None] >= index[None, None, :]
    elif batch.attention == "order":
        own = _order_of(batch)
        theirs = own if cache is None else cache.attend_order[:, : cache.length]
        order = own[:, :, None] >= theirs[:, None, :]
    if order is None or allowed is None:
        return order if allowed is None else allowed
    return allowed & order


def may_read(batch: Batch, segment_ids: Tensor, memory_ids: Tensor) -> Tensor | None:
    """Return bool (B, S, T), true where a decoder token may read an encoder token; None: everyone reads everything.

    Decoder segment k reads encoder segment k, so a row of the mask is empty where the encoder has no such segment.

    Args:
        batch: says whether there are segments or padding.
        segment_ids: segments of the decoder's tokens, (B, S).
        memory_ids: segments of the encoder's tokens, (B, T).
    """
    if batch.is_segmented:
        return segment_ids[:, :, None] == memory_ids[:, None, :]
    if batch.has_padding:
        return (segment_ids > 0)[:, :, None] == (memory_ids > 0)[:, None, :]
    return None


def reach_of(batch: Batch, window: int) -> Reach:
    """Return how far a query sees at most by the order of its batch and a window (0: none), whatever the segments."""
    half = window // 2 if window else None
    return Reach(before=half, after=0 if batch.attention == "causal" else half)


def within_window(length: int, start: int, window: int, device: torch.device) -> Tensor:
    """Return bool (1, T, S), true where |i - j| <= window / 2."""
    index = torch.arange(length, device=device)
    return ((index[start:, None] - index[None, :]).abs() <= window // 2)[None]


def additive(allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return (B or 1, 1, T, S) of zeros and minus infinities to add to attention scores."""
    if allowed is None:
        return None
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill_(~allowed, float("-inf"))[:, None]


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """How the query stream of a batch attends the content stream.

    Attributes:
        bias: (B, 1 or H, Q, S) additive; rows without anyone to attend hold no minus infinity.
        sees: (B, 1, Q, 1) float, 0 for those rows: their attention output is zero.
    """

    bias: Tensor
    sees: Tensor


def query_plan(batch: Batch, segment_ids: Tensor, query_at: Tensor, dtype: torch.dtype) -> QueryPlan:
    """Let a query at position p attend the content of its segment that comes strictly before p in the order."""
    order = _order_of(batch)
    allowed = order.gather(1, query_at)[:, :, None] > order[:, None, :]
    if batch.is_segmented or batch.has_padding:
        own = segment_ids.gather(1, query_at)
        allowed &= own[:, :, None] == segment_ids[:, None, :]
    sees = allowed.any(-1, keepdim=True)
    bias = additive(allowed | ~sees, dtype)
    assert bias is not None
    return QueryPlan(bias=bias, sees=sees[:, None].to(dtype))


def _order_of(batch: Batch) -> Tensor:
    if batch.attention != "order" or batch.attend_order is None:
        raise IncompatibleError(
            f"the batch attends by {batch.attention!r} and has {'no' if batch.attend_order is None else 'an'} order.",
            hint="attention 'order' and a query stream both need attention='order' and attend_order",
        )
    return batch.attend_order
