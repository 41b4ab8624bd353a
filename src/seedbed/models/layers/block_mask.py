"""Attention that skips what nobody attends: whole blocks of a mask of documents or windows (FlexAttention, 2412.05496).

A mask over all pairs costs the fused kernel every product it then hides. Here the kernel is told by blocks of 128 x 128 where
anything is to be done. The rule of who attends whom is that of `mask.py`, said pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from seedbed.batch import Batch

__all__ = ["FLEX_MIN_LENGTH", "flex_within", "takes_flex"]

FLEX_MIN_LENGTH = 256
"""Two blocks: shorter rows have none to skip."""

_SMALLEST_HEAD = 16  # of the kernel


def takes_flex(
    *,
    device_type: str,
    length: int,
    head_dim: int,
    attention: str,
    is_training: bool,
    has_bias: bool,
) -> bool:
    """Say whether layers that attend within documents or windows should use the block-sparse kernel.

    Args:
        device_type: it has no backward pass on a CPU.
        length: T.
        head_dim: K.
        attention: of the batch; an order is a mask that has few empty blocks.
        is_training: decoding and evaluation come in shapes that each would be compiled for.
        has_bias: something beside the mask is added to scores, probabilities are wanted or dropped, or the past is cached.
    """
    return (
        device_type == "cuda"
        and is_training
        and not has_bias
        and attention in ("full", "causal")
        and length >= FLEX_MIN_LENGTH
        and head_dim >= _SMALLEST_HEAD
    )


def flex_within(
    flex: Callable[..., Tensor], batch: Batch, segment_ids: Tensor, *, window: int = 0
) -> Callable[..., Tensor]:
    """Return attention (q, k, v, *, scale, enable_gqa) -> (B, H, T, K) within a batch's documents, and a window if one is given.

    Args:
        flex: `flex_attention`, compiled.
        batch: says what restricts: segments, padding, order.
        segment_ids: (B, T).
        window: i attends j when |i - j| <= window / 2; 0: anywhere.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    is_causal, is_segmented, has_padding = batch.attention == "causal", batch.is_segmented, batch.has_padding

    def may_attend(row: Tensor, head: Tensor, own: Tensor, other: Tensor) -> Tensor:
        allowed = own >= other if is_causal else own >= 0
        if is_segmented:
            allowed = allowed & (segment_ids[row, own] == segment_ids[row, other])
        elif has_padding:
            allowed = allowed & ((segment_ids[row, own] > 0) == (segment_ids[row, other] > 0))
        if window:
            allowed = allowed & ((own - other).abs() <= window // 2)
        return allowed

    rows, length = segment_ids.shape
    mask = create_block_mask(may_attend, rows, None, length, length, device=segment_ids.device)
    return partial(_attend, flex, mask)


def _attend(
    flex: Callable[..., Tensor],
    mask: object,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    """Attend; unlike PyTorch's fused kernel this one is not cast to by autocast, which leaves normed queries in float32."""
    return flex(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask, scale=scale, enable_gqa=enable_gqa)
