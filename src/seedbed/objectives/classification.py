"""Learn labelled texts: the class of a text or of a pair of texts (matching, entailment), or a number.

Source: BERT, arXiv 1810.04805, section 4.1 and figure 4 (fine-tuning on single texts and pairs); as one task of a mixture beside
language modelling: MT-DNN, arXiv 1901.11504.
Differs from BERT: where a family's own class pools otherwise the head is built like it (`models/classifier.py`), so that it
exports exactly; dropout is keyed by row, so that a row's loss does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.examples import ExampleTokens, ExampleView
from seedbed.data.views import Rows, RowSource, View
from seedbed.errors import ConfigError
from seedbed.models.classifier import ClassifierHead, form_of
from seedbed.models.layers.dropout import Dropout
from seedbed.models.translate import Pooling
from seedbed.objectives.base import Objective, ObjectiveConfig, Prediction, Term, Vocabulary, cross_entropy
from seedbed.objectives.task_rows import Frame, frame_of, frame_rows, mean_features
from seedbed.tasks import Example, TaskConfig, TaskData, read_task
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["Classification", "ClassificationConfig", "encode_examples"]

_SITE = 1 << 20
"""Dropout site of the head, beyond those of any trunk."""


class ClassificationConfig(ObjectiveConfig):
    """Classes or numbers of texts and pairs."""

    source: ClassVar = (
        "BERT (Devlin et al., 2018, 1810.04805); in a mixture: MT-DNN (Liu et al., 2019, 1901.11504)"
    )
    fits: ClassVar = ("encoder", "decoder")
    needs: ClassVar = "labelled texts of yours (objective.task)"
    default_model: ClassVar = "modernbert"
    use: ClassVar = "judge texts; in a mixture, let labels shape the trunk"

    name: Literal["classification"] = Field("classification", description="Labelled texts and pairs.")
    task: TaskConfig = Field(
        default_factory=TaskConfig, description="Where the examples are (docs/finetuning.md)."
    )
    pooling: Literal["auto", "first", "mean", "last"] = Field(
        "auto",
        description="Features of a text: of its first token, the mean of all, of its last token. auto: as the family's class.",
    )
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="On the features before the last matrix.")

    def files(self) -> list[str]:
        """Return the labelled files it trains and validates with."""
        return [*self.task.train, *self.task.dev]

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> Classification:
        """Make the objective; see `ObjectiveConfig.build`. Reads the task's files to know its classes.

        Raises:
            TaskError: the files do not fit.
        """
        return Classification(
            self, vocabulary, row_length=row_length, is_segmented=is_segmented, data=read_task(self.task)
        )


class Classification(Objective):
    """Judge texts; one term, "classification" or "regression".

    Args:
        data: the examples that were read.
    """

    view = "examples"
    config: ClassificationConfig

    def __init__(
        self,
        config: ClassificationConfig,
        vocabulary: Vocabulary,
        *,
        row_length: int,
        is_segmented: bool,
        data: TaskData,
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        if data.config.kind == "generation":
            raise ConfigError(
                f"the task {data.config.name} asks for answers in words.",
                hint="objective.name=supervised_generation learns those",
            )
        self.data = data
        self.is_regression = data.config.kind == "regression"
        self.is_pair = data.config.text_pair is not None
        self.term = "regression" if self.is_regression else "classification"
        self.terms = (self.term,)
        self.answers = {self.term: "other" if self.is_regression else "classes"}
        self.num_outputs = 1 if self.is_regression else len(data.labels)
        self._frame = None if vocabulary.cls_id is None else frame_of(vocabulary, is_causal=False)
        self._pooling: Pooling = "first" if config.pooling == "auto" else config.pooling

    @property
    def frame(self) -> Frame:
        """What stands around texts; known once `check` has seen the model."""
        if self._frame is None:
            self._frame = frame_of(self.vocabulary, is_causal=True)
        return self._frame

    @property
    def pooling(self) -> Pooling:
        """Which features of a text are used; known once `check` has seen the model."""
        return self._pooling

    @property
    def raw_row_length(self) -> int:
        """T less the special tokens around texts."""
        return self.row_length - self.frame.num_special(is_pair=self.is_pair)

    def check(self, model: Any) -> None:
        """Refuse models too short or with another vocabulary size, and learn how this one reads and pools."""
        super().check(model)
        self._frame = frame_of(self.vocabulary, is_causal=model.is_causal)
        if self.config.pooling == "auto":
            self._pooling = form_of(model).poolings[0]
        if model.is_causal and self._pooling == "first":
            raise ConfigError(
                "a decoder's first token has seen nothing of the text; pooling=first cannot work.",
                hint="pooling=last or mean",
            )

    def make_view(self, source: RowSource) -> View:
        """Return the view of the training examples, or of the dev examples for validation."""
        if source.tokenizer is None:
            raise ConfigError("labelled texts need the tokenizer.", hint="train from a recipe")
        examples = self.data.splits["train" if source.split == "train" else "dev"]
        return self.view_of(examples, source.tokenizer)

    def view_of(self, examples: Sequence[Example], tokenizer: Tokenizer) -> ExampleView:
        """Return a view of these examples, cut to the row length."""
        return ExampleView(encode_examples(examples, self.data, tokenizer), max_tokens=self.raw_row_length)

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return the trunk and a new head for texts; the language model's head is not used."""
        config: Any = trunk.config
        classifier = ClassifierHead(config, self.num_outputs)
        classifier.initialise(seed, head)
        return {"trunk": trunk, "classifier": classifier}

    def chance(self, term: str) -> float | None:
        """Return the loss of guessing: the spread of the training scores (regression), else ln C."""
        if not self.is_regression:
            return math.log(self.num_outputs)
        scores = torch.tensor(self.data.targets("train"), dtype=torch.float64)
        return float(scores.var(correction=0))

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Put special tokens around texts; a text's target sits at its first token, or at its last for that pooling."""
        batch, lengths = frame_rows(rows, self.frame)
        start = torch.arange(rows.shape[0]) * batch.input_ids.shape[1]
        at = start + lengths - 1 if self._pooling == "last" else start
        assert rows.labels is not None, "rows without labels"
        return batch, {self.term: Targets(at=at, values=rows.labels)}

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Pool, pass the hidden layer, drop; the last matrix is the head."""
        trunk, classifier = modules["trunk"], modules["classifier"]
        assert isinstance(classifier, ClassifierHead)
        config: Any = trunk.config
        if batch.token_type_ids is not None and config.type_vocab_size < 2:
            batch = replace(batch, token_type_ids=None)
        target = targets[self.term]
        rows = target.at // batch.input_ids.shape[1]
        options = {"dropout_key": dropout_key, "embedding_delta": embedding_delta}
        if self._pooling == "mean":
            features = mean_features(trunk(batch, **options).last, batch)[rows]
        else:
            features = trunk(batch, **options, at=target.at).last
        features = classifier.transform(features)
        if dropout_key is not None and self.config.dropout:
            row_ids = torch.arange(len(batch.input_ids)) if batch.row_ids is None else batch.row_ids
            dropout = Dropout(dropout_key.to(torch.int32), row_ids, self.config.dropout, 0.0)
            places = dropout.places(torch.zeros(1, dtype=torch.int32, device=features.device))
            features = dropout.hidden(features, site=_SITE, places=places, at=rows)
        return {self.term: Prediction(features, classifier.output, target)}

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
        """Return the summed cross-entropy, or the summed squared error of a regression."""
        (prediction,) = self.predict(
            modules, batch, targets, dropout_key=dropout_key, embedding_delta=embedding_delta
        ).values()
        if not self.is_regression:
            smoothing, z_loss = self.config.label_smoothing, self.config.z_loss
            return {
                self.term: cross_entropy(
                    prediction, label_smoothing=smoothing, z_loss=z_loss, with_details=with_details
                )
            }
        values = prediction.head(prediction.features).float()[:, 0]
        per_target = (values - prediction.targets.values).square()
        weights = prediction.targets.weights
        loss = (per_target if weights is None else per_target * weights).sum()
        return {self.term: Term(loss, {}, per_target if with_details else None)}

    def outputs(
        self, modules: Mapping[str, nn.Module], batch: Batch, targets: Mapping[str, Targets]
    ) -> Tensor:
        """Return logits (N, C) float32, or scores (N, 1), without dropout."""
        (prediction,) = self.predict(modules, batch, targets).values()
        logits: Tensor = prediction.head(prediction.features).float()
        return logits


def encode_examples(examples: Sequence[Example], data: TaskData, tokenizer: Tokenizer) -> ExampleTokens:
    """Tokenise examples with their class numbers, or their scores."""
    index = {name: number for number, name in enumerate(data.labels)}
    labels: list[int] | list[float]
    if data.config.kind == "regression":
        labels = [float(example.label) for example in examples]
    else:
        labels = [index[str(example.label)] for example in examples]
    pairs = [example.text_pair or "" for example in examples] if data.config.text_pair is not None else None
    return ExampleTokens.encode(tokenizer, [example.text for example in examples], pairs, labels=labels)
