"""Masked language modelling: hide some tokens of a row, predict them from both sides.

Source: BERT, arXiv 1810.04805, section 3.1; whole words as in its later release; other shares and rates in Wettig et
al., arXiv 2202.08005; a falling rate in Ankner et al., arXiv 2305.15096.
Differs from BERT: rows are dense windows of the stream of documents instead of padded pairs, with [CLS] before each;
the number of targets of a row is exact (the lowest draws win), where BERT rounds up to at least one and skips words
that do not fit; random replacements are ordinary tokens, never special ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.store import SPECIAL, WORD
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.hashing import threshold
from seedbed.objectives.base import Objective, ObjectiveConfig, Prediction, Vocabulary
from seedbed.objectives.rows import dense_batch

__all__ = ["MaskedLM", "MaskedLMConfig", "choose_targets"]


class MaskedLMConfig(ObjectiveConfig):
    """Masked language modelling (BERT)."""

    source: ClassVar = "BERT (Devlin et al., 2018, 1810.04805); Wettig et al. 2022, 2202.08005"
    fits: ClassVar = ("encoder",)
    needs: ClassVar = "windows of text, a mask token; word marks for whole words"
    default_model: ClassVar = "modernbert"
    use: ClassVar = "understanding: classification, tagging, search; stands many passes over little text"
    speaks: ClassVar = "fill_mask"

    name: Literal["masked_lm"] = Field("masked_lm", description="Masked language modelling.")
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
    def _shares_fit(self) -> MaskedLMConfig:
        if self.mask_share + self.random_share > 1.0 + 1e-9:
            raise ValueError(
                f"mask_share + random_share is {self.mask_share + self.random_share:g}, more than 1"
            )
        return self

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> MaskedLM:
        """Make the objective; see `ObjectiveConfig.build`."""
        return MaskedLM(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class MaskedLM(Objective):
    """Hide tokens, predict them; one term, "masked_lm"."""

    terms = ("masked_lm",)
    config: MaskedLMConfig

    def __init__(
        self, config: MaskedLMConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        if vocabulary.mask_id is None:
            raise IncompatibleError(
                "objective masked_lm needs a mask token; the vocabulary has none.",
                hint="learn a tokenizer with seedbed (all have [MASK]), or choose objective.name=causal_lm",
            )
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self._ordinary_ids = vocabulary.ordinary_ids()
        self._num_prefix = 0 if vocabulary.cls_id is None else 1

    @property
    def raw_row_length(self) -> int:
        """T less the [CLS] that begins a row."""
        return self.row_length - self._num_prefix

    def for_evaluation(self) -> MaskedLM:
        """Return 15 % single tokens with shares 80/10/10: the targets every masked model is compared on."""
        return MaskedLM(
            MaskedLMConfig(initial_mask_rate=None),
            self.vocabulary,
            row_length=self.row_length,
            is_segmented=self.is_segmented,
        )

    def rate(self, progress: float) -> float:
        """Return the mask rate at `progress`."""
        start, end = self.config.initial_mask_rate, self.config.mask_rate
        return end if start is None else start + (end - start) * progress

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Choose targets by rank of the draws, replace them by their shares."""
        num_rows, length = rows.shape
        column, weights = choose_targets(
            rows, draws, rate=self.rate(progress), by_word=self.config.unit == "word"
        )  # (B, n)
        values = rows.ids.gather(1, column)
        action = draws.positions("masked_lm action", length).gather(1, column)
        random_ids = self._ordinary_ids[
            draws.integers("masked_lm replacement", length, len(self._ordinary_ids)).gather(1, column)
        ]
        replaced = torch.where(_below(action, self.config.mask_share), self.vocabulary.mask_id or 0, values)
        is_random = _below(action, self.config.mask_share + self.config.random_share)
        replaced = torch.where(is_random & ~_below(action, self.config.mask_share), random_ids, replaced)
        if weights is not None:
            replaced = torch.where(weights > 0, replaced, values)
        ids = rows.ids.scatter(1, column, replaced)
        batch = dense_batch(
            ids,
            rows,
            prefix_id=self.vocabulary.cls_id,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
        )
        offset = torch.arange(num_rows)[:, None] * (length + self._num_prefix) + self._num_prefix
        targets = Targets(
            at=(column + offset).reshape(-1),
            values=values.reshape(-1),
            weights=None if weights is None else weights.reshape(-1),
        )
        return batch, {"masked_lm": targets}

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Predict at the hidden places only; the trunk's last layer computes nothing else either."""
        target = targets["masked_lm"]
        hidden = modules["trunk"](
            batch, dropout_key=dropout_key, embedding_delta=embedding_delta, at=target.at
        )
        return {"masked_lm": Prediction(hidden.last, modules["head"], target)}


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
