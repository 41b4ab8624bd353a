"""Hide tokens of rows: choose them, replace them, remember what stood there.

Masked language modelling is the plain user; whatever else masks (pairs, replaced tokens, hybrids, distillation) builds a
`Masking` of the same fields and puts its `Masked` into a batch of its own. Everything happens on raw rows, before special
tokens are added, and is a pure function of rows and draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from seedbed.batch import Targets
from seedbed.config import Config
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.hashing import threshold
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.lexicon import Lexicon, SimilarTokens, SimilarWords, check_digest, path_digest
from seedbed.objectives.units import (
    choose_spans,
    choose_targets,
    first_of_unit,
    geometric_shares,
    word_begins,
)

__all__ = ["Masked", "Masking", "MaskingConfig"]


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
    unit: Literal["token", "word", "span", "ngram", "lexicon"] = Field(
        "token",
        description="What is hidden together: single tokens; whole words (English and Chinese); spans of words (SpanBERT);"
        " one to four words (MacBERT); entries of a lexicon, and words elsewhere (ERNIE).",
    )
    replace_by: Literal["token", "word", "unit"] | None = Field(
        None,
        description="What draws its replacement together. null: as the papers, each span one, each word of an ngram one,"
        " and every token its own otherwise. A unit of spans is what is hidden without a gap.",
    )
    rate_schedule: Literal["linear", "cosine"] = Field(
        "linear", description="How the rate goes from initial_mask_rate to mask_rate over the run."
    )
    span_probability: float = Field(
        0.2,
        gt=0.0,
        lt=1.0,
        description="Spans: p of the geometric distribution of their words (SpanBERT 0.2).",
    )
    max_span_words: int = Field(
        10, ge=1, description="Spans: longest in words; with p = 0.2 and 10 the mean is 3.8."
    )
    ngram_shares: tuple[float, ...] = Field(
        (0.4, 0.3, 0.2, 0.1),
        min_length=1,
        description="Ngrams: shares of 1, 2, ... words (MacBERT); they sum to 1.",
    )
    lexicon: str | None = Field(
        None,
        description="Lexicon: file of your entities and phrases, one a line, UTF-8; needed by unit lexicon.",
    )
    lexicon_digest: str | None = Field(
        None, description="sha256 of that file; filled in when the recipe is read."
    )
    similar_share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the chosen tokens replaced by similar ones (MacBERT: 0.8, with mask_share 0).",
    )
    similar_words: str | None = Field(
        None,
        description="Where similar words come from: a file of lines `word<TAB>similar similar ...`, or the folder of a model"
        " with this tokenizer, for the nearest tokens in its embedding table.",
    )
    similar_words_digest: str | None = Field(
        None, description="sha256 of that file or folder; filled in when the recipe is read."
    )
    similar_neighbours: int = Field(
        10, ge=1, description="Nearest tokens a replacement is drawn from, where similar_words is a model."
    )

    @model_validator(mode="before")
    @classmethod
    def _pin_files(cls, data: Any) -> Any:
        """Fill in what the files hold now, so that a run resumed with other content is refused."""
        if not isinstance(data, Mapping):
            return data
        pinned = dict(data)
        for key in ("lexicon", "similar_words"):
            if isinstance(path := data.get(key), str) and data.get(f"{key}_digest") is None:
                pinned[f"{key}_digest"] = path_digest(path)
        return pinned

    @model_validator(mode="after")
    def _fits(self) -> Self:
        total = self.mask_share + self.random_share + self.similar_share
        if total > 1.0 + 1e-9:
            shares = "mask_share + random_share" + (" + similar_share" if self.similar_share else "")
            raise ValueError(f"{shares} is {total:g}, more than 1")
        if abs(sum(self.ngram_shares) - 1.0) > 1e-6 or min(self.ngram_shares) < 0.0:
            raise ValueError(f"ngram_shares sum to {sum(self.ngram_shares):g}, not to 1")
        if self.unit == "lexicon" and self.lexicon is None:
            raise ValueError("unit lexicon needs a file: lexicon=path/to/words.txt, one entry a line")
        if self.similar_share > 0.0 and self.similar_words is None:
            raise ValueError(
                "similar_share needs similar_words: a file `word<TAB>similar similar ...`, or a model's folder"
            )
        return self

    @property
    def replaces_by(self) -> Literal["token", "word", "unit"]:
        """Return what draws its replacement together."""
        if self.replace_by is not None:
            return self.replace_by
        papers: dict[str, Literal["token", "word", "unit"]] = {"span": "unit", "ngram": "word"}
        return papers.get(self.unit, "token")


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
        IncompatibleError: the vocabulary has no mask token, or cannot encode the words of a file.
        DataError, IntegrityError: a file of the config is missing, unusable, or not the one it was.
    """

    def __init__(
        self, config: MaskingConfig, vocabulary: Vocabulary, *, row_length: int, name: str = "masked_lm"
    ) -> None:
        if vocabulary.mask_id is None:
            raise IncompatibleError(
                f"objective {name} needs a mask token; the vocabulary has none.",
                hint="learn a tokenizer with seedbed (all have [MASK]), or choose objective.name=causal_lm",
            )
        self.config = config
        self.mask_id = vocabulary.mask_id
        self._ordinary_ids = vocabulary.ordinary_ids()
        self.lexicon = _lexicon(config, vocabulary, row_length) if config.unit == "lexicon" else None
        self._similar = _similar(config, vocabulary) if config.similar_share > 0.0 else None

    def rate(self, progress: float) -> float:
        """Return the mask rate at `progress`."""
        start, end = self.config.initial_mask_rate, self.config.mask_rate
        if start is None:
            return end
        if self.config.rate_schedule == "cosine":
            progress = 0.5 - 0.5 * math.cos(math.pi * progress)
        return start + (end - start) * progress

    def __call__(self, rows: Rows, draws: Draws, *, progress: float = 1.0) -> Masked:
        """Choose targets by rank of the draws, replace them by their shares."""
        config, length = self.config, rows.shape[1]
        begins = self._begins(rows)
        if config.unit in ("span", "ngram"):
            spans = config.unit == "span"
            shares = (
                geometric_shares(config.span_probability, config.max_span_words)
                if spans
                else config.ngram_shares
            )
            column, weights = choose_spans(rows, draws, rate=self.rate(progress), shares=shares)
        else:
            column, weights = choose_targets(rows, draws, rate=self.rate(progress), begins=begins)  # (B, n)
        values = rows.ids.gather(1, column)

        # Each target's action is the draw at its own place, or at the first of what is replaced together.
        at = column
        if config.replaces_by == "word" or (
            config.replaces_by == "unit" and config.unit in ("word", "lexicon")
        ):
            joined = word_begins(rows) if config.replaces_by == "word" or begins is None else begins
            at = first_of_unit(joined).gather(1, column)
        elif config.replaces_by == "unit" and config.unit != "token":
            taken = torch.zeros(rows.shape, dtype=torch.bool)
            taken.scatter_(
                1, column, torch.ones_like(column, dtype=torch.bool) if weights is None else weights > 0
            )
            behind_gap = torch.ones_like(taken)
            behind_gap[:, 1:] = ~taken[:, :-1]
            at = first_of_unit(taken & behind_gap).gather(1, column)
        action = draws.positions("masked_lm action", length).gather(1, at)
        random_ids = self._ordinary_ids[
            draws.integers("masked_lm replacement", length, len(self._ordinary_ids)).gather(1, column)
        ]
        known = config.mask_share + config.random_share
        replaced = torch.where(_below(action, config.mask_share), self.mask_id, values)
        is_random = _below(action, known)
        replaced = torch.where(is_random & ~_below(action, config.mask_share), random_ids, replaced)
        if weights is not None:
            replaced = torch.where(weights > 0, replaced, values)
        ids = rows.ids.scatter(1, column, replaced)
        if self._similar is not None:
            is_similar = _below(action, known + config.similar_share) & ~is_random
            if weights is not None:
                is_similar &= weights > 0
            chosen = torch.zeros(rows.shape, dtype=torch.bool).scatter(1, column, is_similar)
            joined = begins if config.unit == "lexicon" and begins is not None else word_begins(rows)
            similar = self._similar.replace(
                rows.ids,
                first_of_unit(joined),
                chosen,
                draws.positions("masked_lm similar", length).long() + 2**31,
                rows.ids.scatter(1, column, random_ids),
            )
            ids = torch.where(chosen, similar, ids)
        return Masked(ids, column, values, weights)

    def _begins(self, rows: Rows) -> Tensor | None:
        """Return where units begin, (B, L) bool; None where every token is one."""
        if self.lexicon is not None:
            return self.lexicon.units(rows.ids, word_begins(rows))[0]
        return word_begins(rows) if self.config.unit == "word" else None


def _below(draw: Tensor, share: float) -> Tensor:
    return torch.ones_like(draw, dtype=torch.bool) if share >= 1.0 else draw < threshold(share)


def _lexicon(config: MaskingConfig, vocabulary: Vocabulary, row_length: int) -> Lexicon:
    """Read the lexicon; an entry longer than the targets of a row could never be hidden."""
    assert config.lexicon is not None
    _check_encodes(vocabulary)
    check_digest(config.lexicon, config.lexicon_digest, "lexicon")
    return Lexicon.read(config.lexicon, vocabulary, max_tokens=max(1, round(config.mask_rate * row_length)))


def _similar(config: MaskingConfig, vocabulary: Vocabulary) -> SimilarWords | SimilarTokens:
    """Read the similar words, or find neighbours in a model's embedding table."""
    assert config.similar_words is not None
    check_digest(config.similar_words, config.similar_words_digest, "similar_words")
    if Path(config.similar_words).expanduser().is_dir():
        return SimilarTokens.read(config.similar_words, vocabulary, num_neighbours=config.similar_neighbours)
    if config.unit == "token" or config.replaces_by == "token":
        raise IncompatibleError(
            "a file of similar words replaces whole words, but objective.unit or objective.replace_by is token.",
            hint="objective.unit=word objective.replace_by=word (or unit=ngram), or a model's folder as similar_words",
        )
    _check_encodes(vocabulary)
    return SimilarWords.read(config.similar_words, vocabulary)


def _check_encodes(vocabulary: Vocabulary) -> None:
    if vocabulary.encode is None:
        raise IncompatibleError(
            "words of a file need a vocabulary that encodes text.",
            hint="make it of a tokenizer: Vocabulary.of",
        )
