"""Put something around another objective's losses: its rows, batches, modules and evaluation stay what they are.

`r_drop.py` and `smoothness.py` are built on it. Both compare the answers of several passes, so both need objectives whose losses
follow from `predict`; others are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows, RowSource, View
from seedbed.errors import IncompatibleError
from seedbed.models.language_model import LanguageModel
from seedbed.objectives.base import Answer, Objective, Prediction, Term

__all__ = ["Pass", "WrappedObjective", "divergence", "run_pass", "weighted"]


class Pass:
    """Hold what one pass gave: the terms, and of each the targets and the logits the loss was computed from."""

    def __init__(self) -> None:
        self.terms: dict[str, Term] = {}
        self.targets: dict[str, Targets] = {}
        self.heads: dict[str, _Kept] = {}

    def logits(self, term: str) -> Tensor:
        """Return the logits (N, C) of a term, float32; the numbers (N, 1) of a regression."""
        found = self.heads[term].logits
        assert found is not None, f"the losses of {term} did not ask its head"
        return found.float()


class _Kept(nn.Module):
    """Remember what a head answered, so that logits over a vocabulary are computed once."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = [head]  # in a list: no module of the model may get a second owner
        self.logits: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self.logits = self._head[0](features)
        return self.logits


class WrappedObjective(Objective):
    """Pass everything on to another objective; each term has a companion that compares passes.

    Args:
        inner: the objective.
        name: of the companions: `<name>`, or `<term>.<name>` where the objective has several terms.
        weight: of a companion, times its term's weight.

    Raises:
        IncompatibleError: the objective's losses do not follow from `predict`.
    """

    can_compare: ClassVar = False

    def __init__(self, inner: Objective, *, name: str, weight: float) -> None:
        if not inner.can_compare:
            raise IncompatibleError(
                f"{name} compares the answers of several passes, and {inner.config.name} has none that could be compared.",
                hint=f"switch regularisation.{name} off, or choose another objective",
            )
        super().__init__(
            inner.config, inner.vocabulary, row_length=inner.row_length, is_segmented=inner.is_segmented
        )
        self.inner = inner
        self.view = inner.view
        self.group_rows = inner.group_rows
        self.weight = weight
        several = len(inner.terms) > 1
        self.companions = {term: f"{term}.{name}" if several else name for term in inner.terms}
        self.terms = (*inner.terms, *self.companions.values())
        answers: dict[str, Answer] = dict.fromkeys(self.companions.values(), "other")
        self.answers = {**inner.answers, **answers}

    @property
    def speaks(self) -> Literal["fill_mask", "generate", "nothing"]:
        """Return what the objective says."""
        return self.inner.speaks

    @property
    def raw_row_length(self) -> int:
        """As the objective's."""
        return self.inner.raw_row_length

    def make_view(self, source: RowSource) -> View:
        """Return the objective's view."""
        return self.inner.make_view(source)

    def check(self, model: Any) -> None:
        """Refuse what the objective refuses."""
        self.inner.check(model)

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return the objective's modules."""
        return self.inner.modules(trunk, head, seed=seed)

    def frozen(self) -> dict[str, nn.Module]:
        """Return the objective's frozen modules."""
        return self.inner.frozen()

    def exported(self, model: LanguageModel, modules: Mapping[str, nn.Module]) -> LanguageModel:
        """Return what the objective exports."""
        return self.inner.exported(model, modules)

    def chance(self, term: str) -> float | None:
        """Return the objective's chance; that of a companion is 0."""
        return 0.0 if term in self.companions.values() else self.inner.chance(term)

    def for_evaluation(self) -> Objective:
        """Return the plain objective's: companions train only."""
        return self.inner.for_evaluation()

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Return the objective's batch."""
        return self.inner.make_batch(rows, draws, progress=progress)

    def weights(self, progress: float) -> dict[str, float]:
        """Return the objective's weights, and those of the companions."""
        own = self.inner.weights(progress)
        return own | {companion: self.weight * own[term] for term, companion in self.companions.items()}

    def counts(self, targets: Mapping[str, Targets]) -> dict[str, float]:
        """Return the objective's counts; a companion has as many targets as its term."""
        own = self.inner.counts(targets)
        return own | {self.companions[term]: count for term, count in own.items()}

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Return the objective's predictions."""
        return self.inner.predict(
            modules, batch, targets, dropout_key=dropout_key, embedding_delta=embedding_delta
        )


def run_pass(
    inner: Objective,
    modules: Mapping[str, nn.Module],
    batch: Batch,
    targets: Mapping[str, Targets],
    *,
    dropout_key: Tensor | None,
    embedding_delta: Tensor | None,
    with_details: bool = False,
) -> Pass:
    """Compute an objective's losses and keep the logits they were computed from."""
    found = Pass()
    watched = copy.copy(inner)

    def predict(*args: Any, **options: Any) -> dict[str, Prediction]:
        predictions = inner.predict(*args, **options)
        found.heads = {term: _Kept(p.head) for term, p in predictions.items()}
        found.targets = {term: p.targets for term, p in predictions.items()}
        return {term: Prediction(p.features, found.heads[term], p.targets) for term, p in predictions.items()}

    watched.predict = predict  # type: ignore[method-assign]
    found.terms = watched.losses(
        modules,
        batch,
        targets,
        dropout_key=dropout_key,
        embedding_delta=embedding_delta,
        with_details=with_details,
    )
    return found


def divergence(one: Tensor, other: Tensor, targets: Targets) -> Tensor:
    """Return how far two answers lie apart at each target, (N,) float32: half the sum of both Kullback-Leibler divergences.

    Between the numbers (N, 1) of a regression it is their squared difference.
    """
    if targets.values.is_floating_point():
        return (one - other).square().squeeze(1)
    first, second = one.log_softmax(dim=1), other.log_softmax(dim=1)
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum(dim=1)


def weighted(per_target: Tensor, targets: Targets) -> Tensor:
    """Return the sum over targets times their weights."""
    return (per_target if targets.weights is None else per_target * targets.weights).sum()
