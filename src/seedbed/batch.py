"""Say what a model sees (`Batch`), what it is asked for (`Targets`) and what it returns (`Hidden`).

Labels are not in a batch: a model is told where to predict, never what. All three are plain frozen values. How a batch
is made from rows lives in `objectives/`, how it is attended in `models/layers/attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

__all__ = ["IGNORE_INDEX", "Attention", "Batch", "Hidden", "Stream", "Targets"]

IGNORE_INDEX = -100
"""Label of a position that is not scored, where a dense label tensor is needed (exports, references)."""

Attention = Literal["full", "causal", "order"]
Stream = Literal["input", "decoder", "query"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold the inputs of one forward pass.

    Attributes:
        input_ids: (B, T) int64 token ids.
        segment_ids: (B, T) int32; 0 is padding, packed documents or sentences count from 1. None: all ones.
        token_type_ids: (B, T) int64 sentence A/B marks of BERT, or None (all zero).
        position_ids: (B, T) int64, or None: positions restart in each segment when `is_segmented`, else count along the row.
        row_ids: (B,) int64, unique across views: what dropout is keyed by. None: 0..B-1.
        attention: "full", "causal", or "order" (i attends j when they share a segment and order[j] <= order[i]).
        is_segmented: attention stays inside segments. A plain bool, so that fast paths are chosen without looking at data.
        has_padding: some `segment_ids` are 0; padding is then never attended.
        attend_order: (B, T) int32, with attention "order" only.
        decoder_input_ids, decoder_segment_ids, decoder_position_ids: (B, S) or None; decoder segment k attends encoder segment k.
        query_at: (B, Q) int64 positions of a second, content-blind stream (XLNet), or None.
    """

    input_ids: Tensor
    segment_ids: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    row_ids: Tensor | None = None
    attention: Attention = "full"
    is_segmented: bool = False
    has_padding: bool = False
    attend_order: Tensor | None = None
    decoder_input_ids: Tensor | None = None
    decoder_segment_ids: Tensor | None = None
    decoder_position_ids: Tensor | None = None
    query_at: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on `device`."""
        return _with_each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """Return the batch in page-locked memory, from which copies to a GPU make nobody wait."""
        return _with_each(self, Tensor.pin_memory)


@dataclass(frozen=True, slots=True)
class Targets:
    """Say where a loss term predicts and what is right there.

    Attributes:
        at: (N,) int64 flat positions into (B*T) of the stream; (B*Q) for the query stream.
        values: (N,) int64 classes, or (N,) float32 for regression.
        weights: (N,) float32 or None (all ones); a weight of 0 pads a target so that shapes stay static.
        stream: which stream's hidden states are read.
    """

    at: Tensor
    values: Tensor
    weights: Tensor | None = None
    stream: Stream = "input"

    def to(self, device: torch.device | str) -> Self:
        """Return the targets with their tensors on `device`."""
        return _with_each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """Return the targets in page-locked memory."""
        return _with_each(self, Tensor.pin_memory)


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hold what a model returns.

    Attributes:
        last: (B, T, D) final hidden states of the input stream (of the decoder for encoder-decoders); (N, D) where the
            model was asked for flat positions `at` only.
        query: (B, Q, D) final hidden states of the query stream, or None.
        captured: what `capture` named, for example "hidden.0" (embedding output), "hidden.3", "attention.1".
    """

    last: Tensor
    query: Tensor | None = None
    captured: Mapping[str, Tensor] = field(default_factory=dict)


_Value = TypeVar("_Value", bound="Batch | Targets")


def _with_each(value: _Value, change: Callable[[Tensor], Tensor]) -> _Value:
    """Return a copy with each of its tensors changed."""
    changed: dict[str, Any] = {
        f.name: change(tensor) for f in fields(value) if isinstance(tensor := getattr(value, f.name), Tensor)
    }
    return replace(value, **changed)
