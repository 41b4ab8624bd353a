"""Describe dense rows to a model: special tokens, segments, padding; shared by the objectives on windows."""

from __future__ import annotations

import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.data.views import Rows, segments_of

__all__ = ["dense_batch", "places_behind"]


def dense_batch(
    ids: Tensor,
    rows: Rows,
    *,
    prefix_id: int | None,
    pad_id: int | None,
    is_segmented: bool,
    causal: bool = False,
) -> Batch:
    """Put a special token before each row and describe its segments.

    Args:
        ids: (B, L) int64, with 0 past the end of short rows.
        rows: the rows they came from.
        prefix_id: token before each row ([CLS] of encoders), or None.
        pad_id: fills the ends of short rows; what stands there is never attended.
        is_segmented: attention and positions stay inside documents.
        causal: attend to the left only.
    """
    segments: Tensor | None = None
    if is_segmented:
        segments = segments_of(rows.marks, rows.lengths)
    elif not rows.is_full:
        segments = (torch.arange(ids.shape[1])[None, :] < rows.lengths[:, None]).to(torch.int32)
    if segments is not None and not rows.is_full and pad_id is not None:
        ids = torch.where(segments > 0, ids, pad_id)
    if prefix_id is not None:
        ids = torch.cat([torch.full_like(ids[:, :1], prefix_id), ids], dim=1)
        segments = (
            None if segments is None else torch.cat([torch.ones_like(segments[:, :1]), segments], dim=1)
        )
    return Batch(
        input_ids=ids,
        segment_ids=segments,
        row_ids=rows.row_ids,
        attention="causal" if causal else "full",
        is_segmented=is_segmented,
        has_padding=not rows.is_full,
    )


def places_behind(rows: Rows, num_prefix: int) -> Tensor:
    """Return the flat position (B, L) int64 of each raw token in a batch with `num_prefix` tokens before each row."""
    num_rows, length = rows.shape
    return (
        torch.arange(num_rows)[:, None] * (length + num_prefix) + num_prefix + torch.arange(length)[None, :]
    )
