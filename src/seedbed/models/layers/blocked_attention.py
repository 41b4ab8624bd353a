"""Attend in long rows on a CPU, a block of queries at a time, by batched products.

PyTorch's fused kernel takes two and a half times as long there, most of it on the way back. Blocks spare the keys that no query
of the block may see (half of a causal row, all but a strip of a windowed one), keep the scores in flight small, and need no more
memory than the probabilities, which rows beyond `_KEPT` places compute again on the way back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["UNLIMITED", "Reach", "applies", "blocked_attention"]

_BLOCK = 128
"""Queries of a block, at least: below, products are too small to be fast."""

_SUMS = 8
"""Blocks that add to the gradients of one key, at most: each sum rounds in the type of the products, and takes its time."""

_KEPT = 1024
"""Keys of a row whose probabilities are kept for the way back."""


class Reach(NamedTuple):
    """How far a query sees, whatever else the mask forbids: so many keys before its own place, and after; None: all."""

    before: int | None = None
    after: int | None = None


UNLIMITED = Reach()


def applies(*, queries: int, device_type: str, reach: Reach) -> bool:
    """Say whether this form is the fastest one: on a CPU, in long rows, or in shorter ones where keys can be spared.

    Compiled and exported graphs keep the plain form: their lengths may vary, and a compiler fuses it.
    """
    least = _BLOCK if reach.after is not None else 2 * _BLOCK
    return device_type == "cpu" and queries > least and not torch.compiler.is_compiling()


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, reach: Reach, scale: float
) -> Tensor:
    """Return softmax(scale q k' + bias) v, (B, H, T, K), each query within its reach.

    Args:
        q: (B, H, T, K), the queries of the last T of S places where `reach` is limited.
        k: (B, G, S, K); H is a multiple of G.
        v: the same shape.
        bias: additive (B or 1, 1 or H, T, S), or None. It is not differentiated. Beyond the reach it is not read.
        reach: which keys can be left out.
        scale: of the scores.
    """
    mixed: Tensor = _BlockedAttention.apply(q, k, v, bias, reach, scale)  # type: ignore[no-untyped-call]
    return mixed


class _Block(NamedTuple):
    """Queries [first, last) and the keys [low, high) that some of them may see."""

    first: int
    last: int
    low: int
    high: int


def _blocks(queries: int, keys: int, reach: Reach) -> list[_Block]:
    size = _BLOCK
    if reach.before is None or reach.after is None:
        size = max(size, -(-queries // (_SUMS * _BLOCK)) * _BLOCK)
    offset = keys - queries if reach != UNLIMITED else 0
    blocks = []
    for first in range(0, queries, size):
        last = min(first + size, queries)
        low = 0 if reach.before is None else max(0, first + offset - reach.before)
        high = keys if reach.after is None else min(keys, last + offset + reach.after)
        blocks.append(_Block(first, last, low, high))
    return blocks


def _stack(queries: Tensor, block: _Block, groups: int) -> Tensor:
    """Return queries (B, H, T, K) of a block as (B G, H / G T, K): heads that share keys share a product."""
    batch, _, _, width = queries.shape
    return queries[:, :, block.first : block.last].reshape(batch * groups, -1, width)


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return scale * left right, without a pass of its own for the scale."""
    shape = (len(left), left.shape[1], right.shape[2])
    return torch.baddbmm(left.new_empty(1, 1, 1).expand(shape), left, right, beta=0, alpha=scale)


def _add_limits(
    scores: Tensor, bias: Tensor | None, block: _Block, reach: Reach, lengths: tuple[int, int]
) -> None:
    """Add the bias to the scores (B, H, T, S) of a block, and hide what is beyond the reach."""
    if bias is not None:
        scores += bias[:, :, block.first : block.last, block.low : block.high]
    queries, keys = lengths
    at = torch.arange(block.first, block.last)[:, None] + (keys - queries)
    seen = torch.arange(block.low, block.high)[None]
    # Few keys are beyond some query's reach; their number is left a multiple of the block's, for vector instructions' sake.
    if reach.after is not None:
        edge = max(0, block.first + keys - queries + reach.after - block.low)
        scores[..., edge:] += _minus_infinity(seen[:, edge:] > at + reach.after, scores.dtype)
    if reach.before is not None:
        edge = max(0, block.last + keys - queries - reach.before - block.low)
        scores[..., :edge] += _minus_infinity(seen[:, :edge] < at - reach.before, scores.dtype)


def _minus_infinity(where: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros and minus infinities to add: filling scores through a mask takes four times as long."""
    return torch.zeros(where.shape, dtype=dtype).masked_fill_(where, float("-inf"))


def _probabilities(
    stacked: Tensor,
    keys: Tensor,
    bias: Tensor | None,
    block: _Block,
    reach: Reach,
    scale: float,
    shape: tuple[int, int, int, int],
) -> Tensor:
    """Return (B G, H / G T, S) of a block; the keys are (B G, K, S), `shape` is (B, H, T, S) of all."""
    scores = _scaled_product(stacked, keys[:, :, block.low : block.high], scale)
    by_head = scores.view(*shape[:2], block.last - block.first, block.high - block.low)
    _add_limits(by_head, bias, block, reach, shape[2:])
    return scores.softmax(-1)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, reach: Reach, scale: float
    ) -> Tensor:
        batch, heads, length, width = q.shape
        groups, total = k.shape[1], k.shape[2]
        shape = (batch, heads, length, total)
        keys, values = k.reshape(-1, total, width), v.reshape(-1, total, width)
        columns = keys.transpose(1, 2).contiguous()  # products would copy it block by block
        mixed = q.new_empty(batch, length, heads, width).transpose(1, 2)  # as it is read next
        keeps = total <= _KEPT and any(ctx.needs_input_grad)
        kept = []
        for block in _blocks(length, total, reach):
            p = _probabilities(_stack(q, block, groups), columns, bias, block, reach, scale, shape)
            out = torch.bmm(p, values[:, block.low : block.high])
            mixed[:, :, block.first : block.last] = out.view(batch, heads, -1, width)
            if keeps:
                kept.append(p)
        ctx.save_for_backward(q, keys, values, bias, *kept)
        ctx.settings = (reach, scale, shape, keeps)
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, values, bias, *kept = ctx.saved_tensors
        reach, scale, shape, keeps = ctx.settings
        batch, heads, length, total = shape
        groups = len(keys) // batch
        to_queries = torch.empty_like(q)
        to_keys, to_values = torch.zeros_like(keys), torch.zeros_like(values)
        columns = None if keeps else keys.transpose(1, 2).contiguous()
        for number, block in enumerate(_blocks(length, total, reach)):
            within = slice(block.low, block.high)
            stacked, arriving = _stack(q, block, groups), _stack(outputs[0], block, groups)
            if columns is None:
                p = kept[number]
            else:
                p = _probabilities(stacked, columns, bias, block, reach, scale, shape)
            to_values[:, within].baddbmm_(p.transpose(1, 2), arriving)
            to_p = torch.bmm(arriving, values[:, within].transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_p, p, -1, p.dtype)
            to_stacked = _scaled_product(to_scores, keys[:, within], scale)
            to_queries[:, :, block.first : block.last] = to_stacked.view(batch, heads, -1, q.shape[-1])
            to_keys[:, within].baddbmm_(to_scores.transpose(1, 2), stacked, alpha=scale)
        unstacked = (batch, groups, total, -1)
        return to_queries, to_keys.view(unstacked), to_values.view(unstacked), None, None, None
