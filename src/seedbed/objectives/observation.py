"""See inside a student and its teacher in one forward pass each, and compare what was seen.

`distillation.py` decides which terms count; the distances themselves are in `matching.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from seedbed.batch import Batch, Hidden
from seedbed.models.config import TransformerConfig
from seedbed.models.layers.mask import may_attend
from seedbed.objectives.matching import (
    attention_scores,
    regrouped,
    relation_divergence,
    score_error,
    state_error,
)

__all__ = ["INSIDE", "Observed", "Pair", "captures"]

INSIDE = ("hidden", "embedding", "attention", "relations")
"""Terms that look inside the layers; the others need outputs only."""


def captures(terms: Collection[str], layers: Iterable[int], num_layers: int) -> list[str]:
    """Return what has to be seen of a model for these terms: its matched layers, from 1, its embedding, its last layer."""
    layers = list(layers)
    names = [f"hidden.{layer}" for layer in layers if "hidden" in terms]
    if "attention" in terms:
        names += [f"{kind}.{layer - 1}" for layer in layers for kind in ("query", "key")]
    if "embedding" in terms:
        names.append("hidden.0")
    if "relations" in terms:
        names += [f"{kind}.{num_layers - 1}" for kind in ("query", "key", "value")]
    return sorted(set(names))


class Observed(nn.Module):
    """Be the student for its base objective, and keep what the teacher's terms need of that one forward pass."""

    def __init__(self, trunk: nn.Module, capture: list[str], *, is_whole: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.capture = capture
        self.is_whole = is_whole
        self.hidden: Hidden | None = None

    def forward(self, batch: Batch, *, at: Tensor | None = None, **options: Any) -> Hidden:
        """Run the trunk; with `is_whole` at every place, whatever the base objective needs."""
        if not self.is_whole:
            self.hidden = self.trunk(batch, at=at, capture=self.capture, **options)
            return self.hidden
        self.hidden = self.trunk(batch, capture=self.capture, **options)
        if at is None:
            return self.hidden
        return replace(self.hidden, last=self.hidden.last.flatten(0, 1).index_select(0, at))


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold what two models made of one batch, and their descriptions."""

    student: Hidden
    teacher: Hidden
    student_config: TransformerConfig
    teacher_config: TransformerConfig

    def state_error(self, projection: nn.Module | None, layer: int, other: int, at: Tensor) -> Tensor:
        """Return the error of hidden states behind a student layer and a teacher layer, (N,); 0 is behind the embedding.

        Args:
            projection: to the teacher's width, or None where widths agree.
            layer: of the student.
            other: of the teacher.
            at: (N,) flat positions.
        """
        own = self.student.captured[f"hidden.{layer}"].flatten(0, 1)[at]
        return state_error(own, self.teacher.captured[f"hidden.{other}"].flatten(0, 1)[at], projection)

    def attention_error(self, batch: Batch, matched: Sequence[int]) -> Tensor:
        """Return the error of attention scores summed over matched layers, (B, T); `matched` are the teacher's, from 1."""
        allowed = _allowed(batch)
        total = torch.zeros(batch.input_ids.shape, device=batch.input_ids.device)
        for layer, other in enumerate(matched):
            own, theirs = (
                attention_scores(hidden.captured[f"query.{i}"], hidden.captured[f"key.{i}"])
                for hidden, i in ((self.student, layer), (self.teacher, other - 1))
            )
            total = total + score_error(own, theirs, allowed)
        return total

    def relation_error(self, batch: Batch, num_heads: int | None) -> Tensor:
        """Return the divergence of the last layers' relations, (B, T); `num_heads` cuts the heads of both anew."""
        allowed, total = _allowed(batch), torch.zeros((), device=batch.input_ids.device)
        for left, right in (("query", "key"), ("value", "value")):
            own, theirs = (
                _relation(hidden, left, right, config, num_heads)
                for hidden, config in (
                    (self.student, self.student_config),
                    (self.teacher, self.teacher_config),
                )
            )
            total = total + relation_divergence(own, theirs, allowed)
        return total


def _relation(
    hidden: Hidden, left: str, right: str, config: TransformerConfig, num_heads: int | None
) -> Tensor:
    """Return the last layer's scores of one kind with another, (B, heads, T, T)."""
    states = []
    for name in (left, right):
        found = hidden.captured[f"{name}.{config.num_layers - 1}"]
        found = found.repeat_interleave(config.num_heads // found.shape[1], dim=1)
        states.append(found if num_heads is None else regrouped(found, num_heads))
    return attention_scores(*states)


def _allowed(batch: Batch) -> Tensor:
    """Return who may attend whom, (B or 1, T, T) bool."""
    ids = batch.input_ids
    segments = torch.ones_like(ids, dtype=torch.int32) if batch.segment_ids is None else batch.segment_ids
    allowed = may_attend(batch, segments, None, 0)
    return (
        torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device)
        if allowed is None
        else allowed
    )
