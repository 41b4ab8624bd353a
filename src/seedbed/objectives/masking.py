"""Hide tokens of rows: choose them, replace them, remember what stood there.

Masked language modelling is the plain user; whatever else masks (pairs, replaced tokens, hybrids, distillation) builds a
`Masking` of the same fields and puts its `Masked` into a batch of its own. Everything happens on raw rows, before special
tokens are added, and is a pure function of rows and draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from seedbed.batch import Targets
from seedbed.config import Config
from seedbed.data.draws import Draws
from seedbed.data.store import SPECIAL, WORD
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.hashing import threshold
from seedbed.objectives.base import Vocabulary

__all__ = ["Masked", "Masking", "MaskingConfig", "choose_targets"]


class MaskingConfig(Config):
    """What is hidden and what stands there instead; the fields of every objective that masks."""

    mask_rate: float = Field(0.15, gt=0.0, lt=1.0, description="Share of a row's tokens that are predicted.")
    initial_mask_rate: float | None = Field(
        0.3,
        gt=0.0,
        lt=1.0,
        description="Rate at the start, falling linearly to mask_rate. null: constant. On 2.5 M tokens of the English demo"
        " 0.3 to 0.15 reached 3.91 nats where a constant 0.15 reached 4.07 (one seed each, docs/log.md).",
    )
    mask_share: float = Field(
        0.8, ge=0.0, le=1.0, description="Share of the chosen tokens replaced by [MASK]."
    )
    random_share: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="Share of the chosen tokens replaced by a random token; the rest stay.",
    )
    unit: Literal["token", "word"] = Field(
        "token", description="What is hidden together: single tokens, or whole words (English and Chinese)."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.mask_share + self.random_share > 1.0 + 1e-9:
            raise ValueError(
                f"mask_share + random_share is {self.mask_share + self.random_share:g}, more than 1"
            )
        return self


@dataclass(frozen=True, slots=True)
class Masked:
    """Hold rows with some tokens hidden.

    Attributes:
        ids: (B, L) int64 what the model sees.
        column: (B, n) int64 places of the targets in the raw row, ascending within the weighted ones.
        values: (B, n) int64 what stood there.
        weights: (B, n) float32, 0 where a row has fewer than n targets; None if all are 1.
    """

    ids: Tensor
    column: Tensor
    values: Tensor
    weights: Tensor | None

    def targets(self, places: Tensor) -> Targets:
        """Return the targets, given where each raw place went.

        Args:
            places: (B, L) int64 flat position in the batch of each raw token; see `rows.places_behind`.
        """
        return Targets(
            at=places.gather(1, self.column).reshape(-1),
            values=self.values.reshape(-1),
            weights=None if self.weights is None else self.weights.reshape(-1),
        )


class Masking:
    """Mask rows by a config.

    Raises:
        IncompatibleError: the vocabulary has no mask token.
    """

    def __init__(self, config: MaskingConfig, vocabulary: Vocabulary, *, name: str = "masked_lm") -> None:
        if vocabulary.mask_id is None:
            raise IncompatibleError(
                f"objective {name} needs a mask token; the vocabulary has none.",
                hint="learn a tokenizer with seedbed (all have [MASK]), or choose objective.name=causal_lm",
            )
        self.config = config
        self.mask_id = vocabulary.mask_id
        self._ordinary_ids = vocabulary.ordinary_ids()

    def rate(self, progress: float) -> float:
        """Return the mask rate at `progress`."""
        start, end = self.config.initial_mask_rate, self.config.mask_rate
        return end if start is None else start + (end - start) * progress

    def __call__(self, rows: Rows, draws: Draws, *, progress: float = 1.0) -> Masked:
        """Choose targets by rank of the draws, replace them by their shares."""
        length = rows.shape[1]
        column, weights = choose_targets(
            rows, draws, rate=self.rate(progress), by_word=self.config.unit == "word"
        )  # (B, n)
        values = rows.ids.gather(1, column)
        action = draws.positions("masked_lm action", length).gather(1, column)
        random_ids = self._ordinary_ids[
            draws.integers("masked_lm replacement", length, len(self._ordinary_ids)).gather(1, column)
        ]
        replaced = torch.where(_below(action, self.config.mask_share), self.mask_id, values)
        is_random = _below(action, self.config.mask_share + self.config.random_share)
        replaced = torch.where(is_random & ~_below(action, self.config.mask_share), random_ids, replaced)
        if weights is not None:
            replaced = torch.where(weights > 0, replaced, values)
        return Masked(rows.ids.scatter(1, column, replaced), column, values, weights)


def choose_targets(rows: Rows, draws: Draws, *, rate: float, by_word: bool) -> tuple[Tensor, Tensor | None]:
    """Choose which places of each row are predicted.

    Every full row gets the same number, `round(rate * L)` and at least 1, so that shapes are static. Tokens (or words)
    are taken in the order of their draws. A word that no longer fits is passed over for the next that does; when none
    does, and in rows shorter than L, places of weight 0 fill up.

    Args:
        rows: the rows; separators are never chosen.
        draws: their draws.
        rate: share of the tokens.
        by_word: take words whole. The first token of a row begins a word even where the row cuts one.

    Returns:
        `column` (B, n) int64 ascending within the weighted ones, and `weights` (B, n) float32, or None if all are 1.
    """
    num_rows, length = rows.shape
    count = max(1, round(rate * length))
    position = torch.arange(length)
    allowed = (position[None, :] < rows.lengths[:, None]) & ((rows.marks & SPECIAL) == 0)  # (B, L)
    wanted = torch.clamp((rate * rows.lengths.double()).round().long(), min=1).clamp(max=count)  # (B,)

    score = draws.positions("masked_lm choice", length).long() + 2**31  # uniform in [0, 2^32)
    if by_word:
        begins = ((rows.marks & WORD) != 0) | ((rows.marks & SPECIAL) != 0)
        begins[:, 0] = True
        first = torch.where(begins, position, 0).cummax(dim=1).values  # (B, L) where each token's word begins
        size = torch.zeros_like(first).scatter_add_(1, first, torch.ones_like(first)).gather(1, first)
        score = (
            score.gather(1, first) * length + first
        )  # one score a word; ties between words broken by place
    else:
        size = torch.ones(num_rows, length, dtype=torch.int64)
        score = score * length + position
    score = torch.where(allowed, score, torch.iinfo(torch.int64).max)

    # Whole units in the order of their draws, while they fit.
    order = score.argsort(dim=1, stable=True)
    if by_word:
        rank = torch.arange(1, length + 1)
        ordered = score.gather(1, order)
        is_last = torch.ones_like(ordered, dtype=torch.bool)
        is_last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
        end = (
            torch.where(is_last, rank, length + 1).flip(1).cummin(dim=1).values.flip(1)
        )  # rank where its word ends
        taken = torch.zeros_like(allowed).scatter(1, order, end <= wanted[:, None]) & allowed
        for _ in range(length):
            missing = wanted - taken.sum(dim=1)
            fits = allowed & ~taken & (size <= missing[:, None])
            best = torch.where(fits, score, torch.iinfo(torch.int64).max).min(dim=1).values
            if not fits.any():
                break
            taken |= fits & (score == best[:, None])
    else:
        taken = torch.zeros_like(allowed).scatter(1, order, position[None, :] < wanted[:, None]) & allowed

    column = (~taken).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    weights = taken.gather(1, column).float()
    return column, None if bool(weights.all()) else weights


def _below(draw: Tensor, share: float) -> Tensor:
    return torch.ones_like(draw, dtype=torch.bool) if share >= 1.0 else draw < threshold(share)
