"""Say what an objective is: how rows become a batch with targets, and which features and head answer for each term.

An objective is pure on the data side (`make_batch`, `counts`) and small on the loss side (`predict`). The shared code
here turns predictions into summed losses; an objective overrides `losses` only when it must (contrastive, distillation).
Sums are never averaged here: the step divides once, by the count over all micro-batches and workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seedbed.batch import Batch, Hidden, Targets
from seedbed.config import Config
from seedbed.data.draws import Draws
from seedbed.data.views import Rows, RowSource, View, WindowView
from seedbed.errors import IncompatibleError
from seedbed.models.config import Stack
from seedbed.models.heads import LMHead
from seedbed.models.language_model import LanguageModel
from seedbed.objectives import summed_loss
from seedbed.objectives.chunked_cross_entropy import chunked_cross_entropy
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Answer",
    "Objective",
    "ObjectiveConfig",
    "Prediction",
    "Term",
    "Vocabulary",
    "check_sizes",
    "count_targets",
    "cross_entropy",
    "features_at",
]

Answer = Literal["tokens", "classes", "other"]
"""What a term predicts: tokens of the text, classes given as targets, or something whose chance the objective knows."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Hold what an objective must know of the tokenizer: sizes and ids; `encode` for lexicons only.

    Attributes:
        decoder_start_id: what a decoder begins with, where the model says so; None: the pad token.
        unused_ids: reserved special tokens in id order: sentinels of span corruption, marks of a prompt.
        encode: text -> ids without special tokens; None for toys.
        digest: of all that decides ids, so that two models can be told to read alike; None for toys.
    """

    vocab_size: int
    separator_id: int
    special_ids: frozenset[int]
    pad_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    mask_id: int | None = None
    bos_id: int | None = None
    decoder_start_id: int | None = None
    unused_ids: tuple[int, ...] = ()
    encode: Callable[[str], list[int]] | None = field(default=None, compare=False, repr=False)
    digest: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Read sizes and ids off a tokenizer."""
        return cls(
            vocab_size=tokenizer.vocab_size,
            separator_id=tokenizer.separator_id,
            special_ids=tokenizer.special_ids,
            pad_id=tokenizer.pad_id,
            cls_id=tokenizer.cls_id,
            sep_id=tokenizer.sep_id,
            mask_id=tokenizer.mask_id,
            bos_id=tokenizer.bos_id,
            unused_ids=tokenizer.unused_ids,
            encode=tokenizer.encode,
            digest=tokenizer.digest,
        )

    def role_ids(self) -> dict[str, int]:
        """Return the ids a model's config stores, by role; the separator begins and ends texts."""
        ids = {"pad": self.pad_id, "cls": self.cls_id, "sep": self.sep_id, "mask": self.mask_id}
        ids |= {"bos": self.separator_id, "eos": self.separator_id}
        return {role: value for role, value in ids.items() if value is not None}

    def ordinary_ids(self) -> Tensor:
        """Return the ids that stand for text, (V - special,) int64."""
        ids = torch.arange(self.vocab_size)
        is_special = torch.zeros(self.vocab_size, dtype=torch.bool)
        is_special[torch.tensor(sorted(self.special_ids), dtype=torch.int64)] = True
        return ids[~is_special]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Say which features and which head answer for one term.

    Attributes:
        features: (N, D) hidden states at the targets.
        head: (N, D) -> (N, C) logits.
        targets: what is right there.
    """

    features: Tensor
    head: nn.Module
    targets: Targets


@dataclass(frozen=True, slots=True)
class Term:
    """Hold the summed loss of one term over the targets of a micro-batch.

    Attributes:
        loss: 0-d float32, summed over targets (times their weights), in nats.
        sums: further sums for display and evaluation, for example "correct" (0-d float32).
        per_target: (N,) float32 losses, where they were asked for.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    per_target: Tensor | None = None


class ObjectiveConfig(Config):
    """Base of the objective configs; a new objective is one file with a subclass and one line in `OBJECTIVES`.

    The class variables are what `seedbed strategies` prints and what a wrong combination is refused by.
    """

    source: ClassVar[str] = ""
    """The paper: names, year, arXiv id."""
    fits: ClassVar[tuple[Stack, ...]] = ()
    """Kinds of model it trains."""
    needs: ClassVar[str] = "windows of text"
    """What of the store, the vocabulary or the user's files it reads."""
    default_model: ClassVar[str] = ""
    """The family meant where a recipe names this objective and no model; a key in MODELS."""
    use: ClassVar[str] = ""
    """When to choose it, in one line."""
    speaks: ClassVar[Literal["fill_mask", "generate", "nothing"]] = "nothing"
    """How the trained model answers in samples: it fills masks, goes on with text, or has no such head."""

    name: str = Field("", description="Which objective; see OBJECTIVES.")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of the target mass spread over all classes."
    )
    z_loss: float = Field(
        0.0, ge=0.0, description="Weight of log(Z)^2, which keeps logits from drifting (PaLM used 1e-4)."
    )

    @property
    def stands_alone(self) -> str:
        """Return why other objectives cannot train the same model in one run; empty: they can."""
        return ""

    def files(self) -> list[str]:
        """Return the files whose rows it learns from beside the store; a run goes on with their content unchanged only."""
        return []

    @abstractmethod
    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> Objective:
        """Make the objective for a vocabulary.

        Args:
            vocabulary: sizes and ids of the tokenizer.
            row_length: T, the tokens a model sees in a row.
            is_segmented: attention stays inside documents.

        Raises:
            IncompatibleError: the vocabulary lacks a special token the objective needs.
        """


class Objective(ABC):
    """Turn rows into a batch with targets, and hidden states into losses.

    Attributes:
        view: name of the view its rows come from; part of the key of its draws.
        terms: names of its loss terms, in order.
        answers: what each term predicts; decides which baseline a loss is shown beside. Terms left out predict tokens.
        group_rows: rows that must stay together (in-batch negatives); micro-batches are multiples of it.
        can_compare: losses follow from `predict` alone, so that the answers of several passes can be compared (R-Drop).
        is_stationary: a loss means the same at every step. Where it does not, since a part of the model sets the task of
            another, the lowest is not the best.
    """

    can_compare: ClassVar[bool] = True
    is_stationary: ClassVar[bool] = True
    view: str = "windows"
    terms: tuple[str, ...] = ()
    answers: Mapping[str, Answer] = {}
    group_rows: int = 1
    config: ObjectiveConfig
    vocabulary: Vocabulary
    row_length: int
    is_segmented: bool

    def __init__(
        self, config: ObjectiveConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.row_length = row_length
        self.is_segmented = is_segmented

    @property
    def speaks(self) -> Literal["fill_mask", "generate", "nothing"]:
        """Return how the trained model answers in samples; see `ObjectiveConfig.speaks`."""
        return self.config.speaks

    @property
    @abstractmethod
    def raw_row_length(self) -> int:
        """Tokens of the store in a row, before special tokens are added."""

    def make_view(self, source: RowSource) -> View:
        """Return the view of a split this objective reads its rows from: dense windows unless overridden."""
        return WindowView(
            source.tokens, length=self.raw_row_length, document_order_key=source.document_order_key
        )

    def check(self, model: Any) -> None:
        """Refuse a model description (`TransformerConfig`) this objective does not fit; overriders call this first.

        Raises:
            IncompatibleError: says what to change.
        """
        config = self.config
        if model.stack not in config.fits:
            raise IncompatibleError(
                f"objective {config.name} trains {' or '.join(map(_STACKS.__getitem__, config.fits))}, but the model is"
                f" {_STACKS[model.stack]}.",
                hint=f"model.name={config.default_model}, or another objective (`seedbed strategies` lists what fits)",
            )
        check_sizes(model, self.vocabulary, self.row_length)

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return the modules that train, by name: "trunk", "head", and what the objective adds, initialised from `seed`.

        A module that an objective does not use is left out, so that nothing without a gradient is updated or decayed.
        """
        return {"trunk": trunk, "head": head}

    def frozen(self) -> dict[str, nn.Module]:
        """Return modules that only answer (a teacher): moved with the rest, passed to `losses`, never saved."""
        return {}

    def exported(self, model: LanguageModel, modules: Mapping[str, nn.Module]) -> LanguageModel:
        """Return what a finished run exports, made of the model it began with and the trained modules."""
        return model

    def chance(self, term: str) -> float | None:
        """Return the loss of a term (answer "other") for a model that knows nothing, nats; None: not known beforehand."""
        return None

    def layout_nats(self, term: str, targets: Targets) -> float:
        """Return what a batch's targets cost anybody for what was drawn at random among them, nats, summed.

        That is nothing, where all targets are of the text. Where some say how a row was cut, no model can know that from the
        text, and no baseline either.
        """
        return 0.0

    @abstractmethod
    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Make a batch and its targets; pure. `progress` in [0, 1] is how far the run is, for scheduled rates."""

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Run the model and say which features and head answer for each term.

        Unless overridden, the model's own head answers for one term, where its targets are: the trunk's last layer computes
        nothing else, unless they are everywhere.
        """
        assert len(self.terms) == 1, (
            "several terms: the objective says in `predict` or `losses` how they are answered"
        )
        (term,) = self.terms
        target = targets[term]
        side = batch.input_ids if target.stream == "input" else batch.decoder_input_ids
        assert side is not None, "a query stream needs a predict of its own"
        at = None if target.at.shape[0] == side.numel() else target.at
        hidden = modules["trunk"](batch, dropout_key=dropout_key, embedding_delta=embedding_delta, at=at)
        features = hidden.last if at is not None else features_at(hidden, target)
        return {term: Prediction(features, modules["head"], target)}

    def for_evaluation(self) -> Objective:
        """Return the objective whose targets evaluation stores: fixed rates, the field's standard corruption."""
        return self

    def weights(self, progress: float) -> dict[str, float]:
        """Return the weight of each term at `progress`."""
        return dict.fromkeys(self.terms, 1.0)

    def counts(self, targets: Mapping[str, Targets]) -> dict[str, float]:
        """Return the number of targets of each term (the sum of their weights), known before any forward pass."""
        return {term: count_targets(target) for term, target in targets.items() if term in self.terms}

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
        """Return the summed loss of each term; with `with_details` also accuracies and per-target losses."""
        predictions = self.predict(
            modules, batch, targets, dropout_key=dropout_key, embedding_delta=embedding_delta
        )
        return {
            term: cross_entropy(
                prediction,
                label_smoothing=self.config.label_smoothing,
                z_loss=self.config.z_loss,
                with_details=with_details,
            )
            for term, prediction in predictions.items()
        }


_STACKS: dict[str, str] = {
    "encoder": "an encoder (looks to both sides)",
    "decoder": "a decoder (looks to the left)",
    "encoder_decoder": "an encoder-decoder",
}


def check_sizes(model: Any, vocabulary: Vocabulary, row_length: int) -> None:
    """Refuse a model with fewer embeddings than the vocabulary, or with fewer positions than a row."""
    if model.vocab_size < vocabulary.vocab_size:
        raise IncompatibleError(
            f"the model has {model.vocab_size} token embeddings, the tokenizer {vocabulary.vocab_size} tokens.",
            hint="build the model for this tokenizer",
        )
    if row_length > model.max_length:
        raise IncompatibleError(
            f"data.row_length is {row_length}, but the model has {model.max_length} positions.",
            hint=f"model.max_length={row_length}, or data.row_length={model.max_length}",
        )


def count_targets(targets: Targets) -> float:
    """Return the number of targets, or the sum of their weights."""
    return (
        float(targets.at.shape[0])
        if targets.weights is None
        else float(targets.weights.sum(dtype=torch.float64))
    )


def features_at(hidden: Hidden, targets: Targets) -> Tensor:
    """Return the hidden states (N, D) at the targets' flat positions of their stream."""
    states = hidden.query if targets.stream == "query" else hidden.last
    assert states is not None, "the objective asked for a query stream that its batch did not name"
    flat = states.reshape(-1, states.shape[-1])
    if targets.at.shape[0] == flat.shape[0]:  # every position, in order: nothing to gather
        return flat
    return flat.index_select(0, targets.at)


def cross_entropy(
    prediction: Prediction, *, label_smoothing: float = 0.0, z_loss: float = 0.0, with_details: bool = False
) -> Term:
    """Return the summed cross-entropy of one term, computed in float32.

    With `with_details` the term also holds `sums["correct"]` and `sums["correct_top5"]` (weighted counts) and
    `per_target` losses. A target is correct when fewer than 1 (5) classes have a higher logit; classes that tie with
    it count half, so that a constant output scores at chance.

    Where a head is told to limit its logits and they are more, or its loss is compiled besides, a loss without details goes by
    portions (`chunked_cross_entropy.py`).
    """
    head = prediction.head
    if not with_details and isinstance(head, LMHead) and head.logits_bytes:
        row_bytes = 4 * head.weight.shape[0]
        if prediction.features.shape[0] * row_bytes > head.logits_bytes or head.loss_kernel is not None:
            return Term(_in_portions(prediction, head, row_bytes, label_smoothing, z_loss), {})
    logits = head(prediction.features)
    values, weights = prediction.targets.values, prediction.targets.weights
    if not with_details and summed_loss.applies(logits):
        smoothing = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        return Term(summed_loss.summed_loss(logits, values, weights, **smoothing), {})
    logits = logits.float()
    if weights is None and z_loss == 0.0 and not with_details:
        return Term(F.cross_entropy(logits, values, reduction="sum", label_smoothing=label_smoothing), {})
    per_target = F.cross_entropy(logits, values, reduction="none", label_smoothing=label_smoothing)
    sums: dict[str, Tensor] = {}
    weight = torch.ones_like(per_target) if weights is None else weights
    if with_details:
        right = logits.gather(1, values[:, None])
        rank = (logits > right).sum(dim=1).float() + 0.5 * ((logits == right).sum(dim=1).float() - 1.0)
        sums["correct"] = (weight * (rank < 1.0)).sum()
        sums["correct_top5"] = (weight * (rank < 5.0)).sum()
    loss = (weight * per_target).sum()
    if z_loss:
        loss = loss + z_loss * (weight * logits.logsumexp(dim=1).square()).sum()
    return Term(loss, sums, per_target if with_details else None)


def _in_portions(
    prediction: Prediction, head: LMHead, row_bytes: int, label_smoothing: float, z_loss: float
) -> Tensor:
    """Return the summed loss of a language model's head, a portion of its logits at a time."""
    features = head.transform(prediction.features)
    kind = features.device.type
    targets = prediction.targets
    return chunked_cross_entropy(
        features,
        head.weight,
        head.bias,
        targets.values,
        targets.weights,
        chunk_rows=head.logits_bytes // row_bytes,
        compute_dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=head.config.logit_softcap,
        kernel=head.loss_kernel,
    )
