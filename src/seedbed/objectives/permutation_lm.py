"""Permutation language modelling: predict tokens in a random order, each from all that come before it.

Source: XLNet, Yang et al. 2019, arXiv 1906.08237, sections 2.2 to 2.4; how contexts and targets attend as in its released code.
A row is read in two streams: content states see a token and what comes before it in the order, query states see where they
are and what comes before, not what stands there. The last 1/K of the order are predicted (section 2.3).
Differs from the paper: separators and [CLS] are never targets and belong to what all see (there they are ordered among the
targets); [CLS] begins the row instead of ending it; no memory of the row before; each target span is taken where its
draw puts it, not one in each stretch of K times its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.store import SPECIAL
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Objective, ObjectiveConfig, Prediction, Vocabulary, features_at
from seedbed.objectives.rows import dense_batch
from seedbed.objectives.units import choose_spans, choose_targets, word_begins

__all__ = ["PermutationLM", "PermutationLMConfig"]


class PermutationLMConfig(ObjectiveConfig):
    """Permutation language modelling (XLNet)."""

    source: ClassVar = "XLNet (Yang et al., 2019, 1906.08237)"
    fits: ClassVar = ("encoder",)
    needs: ClassVar = "windows of text, a model with a query stream; word marks for spans"
    default_model: ClassVar = "xlnet"
    use: ClassVar = "understanding without [MASK] in the input; dearer a step than masked_lm"

    name: Literal["permutation_lm"] = Field("permutation_lm", description="Permutation language modelling.")
    tokens_per_target: float = Field(
        6.0,
        ge=1.0,
        description="K: one token in K is predicted, the last of the order. The paper used 6 and 7; its targets are chosen as"
        " spans.",
    )
    unit: Literal["span", "word", "token"] = Field(
        "span", description="What is predicted together: spans of words, single words, or single tokens."
    )
    max_span_words: int = Field(
        5,
        ge=1,
        description="Longest span; n words have a probability in proportion to 1/n, as in the released code.",
    )
    context: Literal["full", "permuted"] = Field(
        "full",
        description="`full`: tokens that are not predicted see each other, as in the released code and as when the model is used."
        " `permuted`: they too see only what comes before them in the order, the paper's formula (4).",
    )

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> PermutationLM:
        """Make the objective; see `ObjectiveConfig.build`."""
        return PermutationLM(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class PermutationLM(Objective):
    """Predict in a random order; one term, "permutation_lm", at the query stream."""

    terms = ("permutation_lm",)
    config: PermutationLMConfig

    def __init__(
        self, config: PermutationLMConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self._num_prefix = 0 if vocabulary.cls_id is None else 1

    @property
    def raw_row_length(self) -> int:
        """T less the [CLS] that begins a row."""
        return self.row_length - self._num_prefix

    def check(self, model: Any) -> None:
        """Refuse what is no encoder, or has no second stream."""
        super().check(model)
        if not model.query_stream:
            raise IncompatibleError(
                "objective permutation_lm predicts from a query stream, which the model does not have.",
                hint="model.name=xlnet, or model.query_stream=true (such a model of another family cannot be exported)",
            )

    def for_evaluation(self) -> PermutationLM:
        """Return single tokens, one in six, from a full context, whatever trains: figures that can be compared."""
        fixed = PermutationLMConfig(unit="token")
        return PermutationLM(
            fixed, self.vocabulary, row_length=self.row_length, is_segmented=self.is_segmented
        )

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Choose the targets and the order; put [CLS] in front."""
        config, prefix = self.config, self._num_prefix
        rate = 1 / config.tokens_per_target
        if config.unit == "span":
            inverse = [1 / n for n in range(1, config.max_span_words + 1)]
            column, weights = choose_spans(
                rows, draws, rate=rate, shares=[share / sum(inverse) for share in inverse]
            )
        else:
            begins = word_begins(rows) if config.unit == "word" else None
            column, weights = choose_targets(rows, draws, rate=rate, begins=begins)  # (B, n)
        batch = dense_batch(
            rows.ids,
            rows,
            prefix_id=self.vocabulary.cls_id,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
        )
        order = self._order(rows, draws, column, weights)
        if prefix:
            order = torch.cat([torch.zeros_like(order[:, :1]), order], dim=1)
        batch = replace(batch, attention="order", attend_order=order, query_at=column + prefix)
        targets = Targets(
            at=torch.arange(column.numel()),
            values=rows.ids.gather(1, column).reshape(-1),
            weights=None if weights is None else weights.reshape(-1),
            stream="query",
        )
        return batch, {"permutation_lm": targets}

    def _order(self, rows: Rows, draws: Draws, column: Tensor, weights: Tensor | None) -> Tensor:
        """Return the place of each raw token in the order, (B, L) int32: 0 is seen by all, targets come last."""
        length = rows.shape[1]
        wanted = torch.ones_like(column, dtype=torch.bool) if weights is None else weights > 0
        is_target = torch.zeros(rows.shape, dtype=torch.bool).scatter(1, column, wanted)
        draw = draws.positions("permutation_lm order", length).long() + 2**31  # uniform in [0, 2^32)
        score = draw * length + torch.arange(length) + (is_target.long() << 62)
        rank = score.argsort(dim=1).argsort(dim=1) + 1
        if self.config.context == "full":
            rank = torch.where(is_target, rank, 0)
        is_seen_by_all = ((rows.marks & SPECIAL) != 0) & ~is_target
        return torch.where(is_seen_by_all, 0, rank).to(torch.int32)

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Predict from the query stream; the content of the last layer is wanted nowhere, and not computed."""
        target = targets["permutation_lm"]
        nowhere = torch.zeros(0, dtype=torch.int64, device=batch.input_ids.device)
        hidden = modules["trunk"](batch, dropout_key=dropout_key, embedding_delta=embedding_delta, at=nowhere)
        return {"permutation_lm": Prediction(features_at(hidden, target), modules["head"], target)}
