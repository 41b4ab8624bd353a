"""R-Drop: two passes with different dropout shall give the same answer.

Source: X. Liang et al., arXiv 2106.14448, section 2.1: the loss of both passes, and alpha times half the sum of both
Kullback-Leibler divergences between their answers.
Differs from it: the losses of the two passes are averaged, as in the released code, not added, so that a loss means what it means
without R-Drop. Between the numbers of a regression the divergence is their squared difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.errors import ConfigError
from seedbed.hashing import fold
from seedbed.objectives.base import Objective, Term
from seedbed.objectives.wrapped import WrappedObjective, divergence, run_pass, weighted

__all__ = ["RDrop"]


class RDrop(WrappedObjective):
    """The objective's terms, each with a companion "r_drop": the divergence between two passes.

    Args:
        inner: the objective.
        weight: alpha.
    """

    def __init__(self, inner: Objective, *, weight: float) -> None:
        super().__init__(inner, name="r_drop", weight=weight)

    def check(self, model: Any) -> None:
        """Refuse what the objective refuses, and a model without dropout: both passes would be the same.

        Raises:
            ConfigError: says what to change.
        """
        super().check(model)
        if not (model.hidden_dropout or model.attention_dropout or getattr(self.config, "dropout", 0.0)):
            raise ConfigError(
                "R-Drop compares two passes with different dropout, and this model has none.",
                hint="model.hidden_dropout=0.1 (hidden_dropout=0.1 when fine-tuning), or regularisation.r_drop=0",
            )

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
        """Return the mean of both passes' losses, and the divergence summed over targets."""
        one, other = (
            run_pass(
                self.inner,
                modules,
                batch,
                targets,
                dropout_key=None if dropout_key is None else fold(dropout_key, number),
                embedding_delta=embedding_delta,
                with_details=with_details,
            )
            for number in range(2)
        )
        terms: dict[str, Term] = {}
        for term, first in one.terms.items():
            second = other.terms[term]
            sums = {key: (value + second.sums[key]) / 2 for key, value in first.sums.items()}
            per_target = None
            if first.per_target is not None and second.per_target is not None:
                per_target = (first.per_target + second.per_target) / 2
            terms[term] = Term((first.loss + second.loss) / 2, sums, per_target)
            apart = divergence(one.logits(term), other.logits(term), one.targets[term])
            terms[self.companions[term]] = Term(weighted(apart, one.targets[term]), {})
        return terms
