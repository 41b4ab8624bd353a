"""Masked language modelling: hide some tokens of a row, predict them from both sides.

Source: BERT, arXiv 1810.04805, section 3.1; whole words as in its later release; other shares and rates in Wettig et
al., arXiv 2202.08005; a falling rate in Ankner et al., arXiv 2305.15096; spans and their boundary in SpanBERT, 1907.10529;
entities and phrases in ERNIE, 1904.09223; n-grams and similar words in MacBERT, 2004.13922.
Differs from BERT: rows are dense windows of the stream of documents instead of padded pairs, with [CLS] before each;
the number of targets of a row is exact (the lowest draws win), where BERT rounds up to at least one and skips words
that do not fit; random replacements are ordinary tokens, never special ones. What the other papers' units differ in is said
in docs/strategies.md. How tokens are hidden lives in `masking.py`, how they are chosen in `units.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows, RowSource, View
from seedbed.models.heads import LMHead
from seedbed.models.transformer import Transformer
from seedbed.objectives.base import Objective, ObjectiveConfig, Prediction, Vocabulary
from seedbed.objectives.masking import Masking, MaskingConfig
from seedbed.objectives.rows import dense_batch, places_behind
from seedbed.objectives.span_boundary import SpanBoundaryHead, VocabularyMatrix, boundary_targets

__all__ = ["MaskedLM", "MaskedLMConfig"]


class MaskedLMConfig(MaskingConfig, ObjectiveConfig):
    """Masked language modelling (BERT)."""

    source: ClassVar = (
        "BERT (Devlin et al., 2018, 1810.04805); Wettig et al. 2022, 2202.08005; units: SpanBERT 1907.10529,"
        " MacBERT 2004.13922, ERNIE 1904.09223"
    )
    fits: ClassVar = ("encoder",)
    needs: ClassVar = (
        "windows of text, a mask token; word marks for units of words; a file of yours for a lexicon"
    )
    default_model: ClassVar = "modernbert"
    use: ClassVar = "understanding: classification, tagging, search; stands many passes over little text"
    speaks: ClassVar[Literal["fill_mask"]] = "fill_mask"

    name: Literal["masked_lm"] = Field("masked_lm", description="Masked language modelling.")

    span_boundary: bool = Field(
        False,
        description="Also predict each hidden token from what stands on either side of its span (SpanBERT); for unit span.",
    )

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> MaskedLM:
        """Make the objective; see `ObjectiveConfig.build`."""
        return MaskedLM(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class MaskedLM(Objective):
    """Hide tokens, predict them: term "masked_lm", and "span_boundary" where the config asks for it."""

    terms: tuple[str, ...] = ("masked_lm",)
    config: MaskedLMConfig

    def __init__(
        self, config: MaskedLMConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self._num_prefix = 0 if vocabulary.cls_id is None else 1
        if config.span_boundary:
            self.terms = ("masked_lm", "span_boundary")
        self.masking = Masking(config, vocabulary, row_length=self.raw_row_length)

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

    def make_view(self, source: RowSource) -> View:
        """Return windows; say how often the entries of a lexicon stand in the text."""
        if self.masking.lexicon is not None:
            self.masking.lexicon.report_matches(source.tokens)
        return super().make_view(source)

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return trunk and head, and the layers of the span boundary where they are asked for."""
        own = super().modules(trunk, head, seed=seed)
        if self.config.span_boundary:
            assert isinstance(trunk, Transformer)
            assert isinstance(head, LMHead)
            own["span_boundary"] = SpanBoundaryHead(trunk.config, width=head.weight.shape[1], seed=seed)
        return own

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Hide tokens of the rows, put [CLS] in front."""
        masked = self.masking(rows, draws, progress=progress)
        batch = dense_batch(
            masked.ids,
            rows,
            prefix_id=self.vocabulary.cls_id,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
        )
        places = places_behind(rows, self._num_prefix)
        targets = {"masked_lm": masked.targets(places)}
        if self.config.span_boundary:
            targets |= boundary_targets(masked, places, rows.lengths, has_prefix=self._num_prefix > 0)
        return batch, targets

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
        # The target of the span boundary reads its neighbours, not its own place.
        asked = {name: target for name, target in targets.items() if name != "span_boundary"}
        at = torch.cat([target.at for target in asked.values()])
        hidden = modules["trunk"](batch, dropout_key=dropout_key, embedding_delta=embedding_delta, at=at).last
        features = dict(zip(asked, hidden.split([len(target.at) for target in asked.values()]), strict=True))
        predictions = {}
        if "masked_lm" in targets:
            predictions["masked_lm"] = Prediction(
                features["masked_lm"], modules["head"], targets["masked_lm"]
            )
        if "span_boundary" in targets:
            left, right = features["span_boundary.left"], features["span_boundary.right"]
            inner = modules["span_boundary"](left, right, targets["span_boundary.left"].values)
            head = modules["head"]
            assert isinstance(head, LMHead)
            predictions["span_boundary"] = Prediction(inner, VocabularyMatrix(head), targets["span_boundary"])
        return predictions
