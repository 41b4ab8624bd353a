"""Judge pairs of runs of sentences, alone or on the forward pass of masked language modelling.

Shared by `next_sentence.py` and `sentence_order.py`, which differ in the view's second label only. A row is
`[CLS] A [SEP] B [SEP]`, with token types 0 and 1 where the model has them; the pair is judged from the first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.pairs import PairKind, SentencePairView
from seedbed.data.store import SPECIAL
from seedbed.data.views import Rows, RowSource, View
from seedbed.errors import IncompatibleError
from seedbed.models.language_model import LanguageModel
from seedbed.models.pretraining_heads import SentencePairHead, init_head
from seedbed.models.transformer import Transformer
from seedbed.objectives.base import Objective, ObjectiveConfig, Prediction, Term, Vocabulary, cross_entropy
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.masking import Masking

__all__ = ["SentencePair", "SentencePairConfig", "frame_pairs"]


class SentencePairConfig(ObjectiveConfig):
    """What the objectives on pairs have in common."""

    fits: ClassVar = ("encoder",)
    needs: ClassVar = "documents of two sentences or more, sentence marks; [CLS], [SEP], a mask token"
    default_model: ClassVar = "modernbert"

    masked_lm: MaskedLMConfig | None = Field(
        default_factory=MaskedLMConfig,
        description="Masked language modelling on the same forward pass; null: pairs alone.",
    )
    pair_weight: float = Field(1.0, gt=0.0, description="Weight of the pair's loss beside that of masked_lm.")
    short_rate: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="Share of the rows made shorter, uniform in length (BERT and ALBERT 0.1).",
    )

    @field_validator("masked_lm")
    @classmethod
    def _no_boundary(cls, nested: MaskedLMConfig | None) -> MaskedLMConfig | None:
        if nested is not None and nested.span_boundary:
            raise ValueError(
                "span_boundary reads single texts, as SpanBERT does; use objective.name=masked_lm"
            )
        return nested


class SentencePair(Objective):
    """Say of two runs of sentences whether they are as they stand in the text (0) or not (1); see `SentencePairView`."""

    view = "sentence_pairs"
    kind: PairKind
    config: SentencePairConfig

    def __init__(
        self, config: SentencePairConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        if vocabulary.cls_id is None or vocabulary.sep_id is None:
            raise IncompatibleError(
                f"objective {config.name} needs [CLS] and [SEP]; the vocabulary lacks one of them.",
                hint="learn a tokenizer with seedbed (all have both), or choose another objective",
            )
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self.masking: Masking | None = None
        self.terms = (self.kind,)
        if config.masked_lm is not None:
            self.masking = Masking(config.masked_lm, vocabulary, row_length=row_length, name=config.name)
            self.terms = ("masked_lm", self.kind)
        self.answers = {self.kind: "classes"}

    @property
    def speaks(self) -> Literal["fill_mask", "generate", "nothing"]:
        """Return that nothing is said where no masked LM trains the vocabulary's head."""
        return "nothing" if self.masking is None else super().speaks

    @property
    def raw_row_length(self) -> int:
        """T less [CLS] and two [SEP]."""
        return self.row_length - 3

    def make_view(self, source: RowSource) -> View:
        """Return pairs of runs of whole sentences."""
        if self.masking is not None and self.masking.lexicon is not None:
            self.masking.lexicon.report_matches(source.tokens)
        return SentencePairView(
            source.tokens,
            length=self.raw_row_length,
            kind=self.kind,
            seed=source.seed,
            short_rate=self.config.short_rate,
        )

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return trunk, the pair's head, and the vocabulary's head where masked LM trains it."""
        assert isinstance(trunk, Transformer)
        pair = SentencePairHead(trunk.config)
        init_head(pair, trunk.config, seed)
        own: dict[str, nn.Module] = {"trunk": trunk, "sentence_pair": pair}
        return own if self.masking is None else {**own, "head": head}

    def exported(self, model: LanguageModel, modules: Mapping[str, nn.Module]) -> LanguageModel:
        """Return the model with the pair's head; without that of the vocabulary where nothing trained it."""
        head = None if self.masking is None else model.head
        return LanguageModel(model.trunk, head, {"sentence_pair": modules["sentence_pair"]})

    def for_evaluation(self) -> SentencePair:
        """Return plain losses at full rows and standard masks."""
        nested = None if self.masking is None else MaskedLMConfig(initial_mask_rate=None)
        config = type(self.config)(masked_lm=nested, pair_weight=self.config.pair_weight, short_rate=0.0)
        return type(self)(config, self.vocabulary, row_length=self.row_length, is_segmented=self.is_segmented)

    def weights(self, progress: float) -> dict[str, float]:
        """Return 1 for masked LM and the pair's weight."""
        return {term: self.config.pair_weight if term == self.kind else 1.0 for term in self.terms}

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Put [CLS] and [SEP] around the two parts, hide tokens of both."""
        assert rows.labels is not None, "rows of another view"
        framed = frame_pairs(rows, self.vocabulary)
        num_rows, length = framed.shape
        place = torch.arange(num_rows * length).reshape(num_rows, length)
        targets: dict[str, Targets] = {}
        ids = framed.ids
        if self.masking is not None:
            masked = self.masking(framed, draws, progress=progress)
            ids = masked.ids
            targets["masked_lm"] = masked.targets(place)
        targets[self.kind] = Targets(at=place[:, 0].clone(), values=rows.labels)
        assert framed.first_lengths is not None
        inside = torch.arange(length)[None, :] < framed.lengths[:, None]
        is_second = inside & (torch.arange(length)[None, :] >= framed.first_lengths[:, None])
        batch = Batch(
            input_ids=ids,
            segment_ids=None if framed.is_full else inside.to(torch.int32),
            token_type_ids=is_second.long(),
            row_ids=rows.row_ids,
            has_padding=not framed.is_full,
        )
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
        """Predict at the hidden places and at each row's first token, in one pass."""
        trunk = modules["trunk"]
        assert isinstance(trunk, Transformer)
        if trunk.config.type_vocab_size < 2:
            batch = replace(batch, token_type_ids=None)
        at = torch.cat([target.at for target in targets.values()])
        hidden = trunk(batch, dropout_key=dropout_key, embedding_delta=embedding_delta, at=at).last
        features = hidden.split([len(target.at) for target in targets.values()])
        heads = {"masked_lm": "head", self.kind: "sentence_pair"}
        return {
            term: Prediction(feature, modules[heads[term]], target)
            for (term, target), feature in zip(targets.items(), features, strict=True)
        }

    def losses(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
        with_details: bool = False,
    ) -> dict[str, Term]:
        """Return the summed loss of each term, masked LM with the smoothing and z-loss of its own section."""
        predictions = self.predict(
            modules, batch, targets, dropout_key=dropout_key, embedding_delta=embedding_delta
        )
        sections: dict[str, ObjectiveConfig] = {self.kind: self.config}
        if self.config.masked_lm is not None:
            sections["masked_lm"] = self.config.masked_lm
        return {
            term: cross_entropy(
                prediction,
                label_smoothing=sections[term].label_smoothing,
                z_loss=sections[term].z_loss,
                with_details=with_details,
            )
            for term, prediction in predictions.items()
        }


def frame_pairs(rows: Rows, vocabulary: Vocabulary) -> Rows:
    """Return rows with `[CLS] A [SEP] B [SEP]` in place of A and B, padded to L + 3.

    What was put around is marked SPECIAL, padding too, so that neither is masked or joined to a word; `first_lengths` counts
    [CLS] and the first [SEP].
    """
    assert rows.first_lengths is not None
    assert vocabulary.cls_id is not None
    assert vocabulary.sep_id is not None
    num_rows, length = rows.shape
    number = torch.arange(num_rows)
    column = torch.arange(length)[None, :]
    place = 1 + column + (column >= rows.first_lengths[:, None])
    place = torch.where(column < rows.lengths[:, None], place, length + 3)  # a column more takes the padding
    ids = torch.full((num_rows, length + 4), vocabulary.pad_id or 0)
    marks = torch.full((num_rows, length + 4), SPECIAL, dtype=torch.uint8)
    ids.scatter_(1, place, rows.ids)
    marks.scatter_(1, place, rows.marks)
    ids[:, 0] = vocabulary.cls_id
    ids[number, 1 + rows.first_lengths] = vocabulary.sep_id
    ids[number, 2 + rows.lengths] = vocabulary.sep_id
    return replace(
        rows,
        ids=ids[:, :-1],
        marks=marks[:, :-1],
        lengths=rows.lengths + 3,
        first_lengths=rows.first_lengths + 2,
    )
