"""Score a model at fixed targets: the same rows, the same masks, every time and for every model of a tokenizer.

Targets are drawn with a key of their own (`EVALUATION_SEED`), so they do not depend on a run's seed. Sums are kept in
float64 and divided once, by the number of targets: a score does not depend on how rows are batched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.views import RowReader, View
from seedbed.errors import DataError
from seedbed.evaluation.slices import TokenLosses
from seedbed.objectives.base import Objective
from seedbed.runtime import autocast

__all__ = ["EVALUATION_SEED", "EvaluationSet", "Spread", "build_evaluation_set", "score"]

EVALUATION_SEED = 20_000_003
"""Key of evaluation masks. Changing it makes every earlier figure incomparable."""

_MAX_LOGITS = 1 << 26

_RATES = {"correct": "accuracy", "correct_top5": "accuracy_top5"}


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Hold the batches and targets of a fixed evaluation.

    Attributes:
        batches: what the model sees and what is right, in row order.
        num_rows: rows scored.
        total_rows: rows the split has; `num_rows` of them were taken, evenly spaced.
    """

    batches: Sequence[tuple[Batch, Mapping[str, Targets]]]
    num_rows: int
    total_rows: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Share the batches of an evaluation among processes, of which each has the same number of passes to run.

    Attributes:
        index: which process this is.
        count: how many there are.
        add: returns the sums over all processes, key by key, the same on each.
    """

    index: int
    count: int
    add: Callable[[Mapping[tuple[str, str], float]], Mapping[tuple[str, str], float]]

    def own(self, num_batches: int) -> list[tuple[int, bool]]:
        """Return the batches this process scores, and whether each counts: where none is left, the first is run for nothing."""
        places = range(self.index, -(-num_batches // self.count) * self.count, self.count)
        return [(place, True) if place < num_batches else (0, False) for place in places]


def build_evaluation_set(
    objective: Objective, view: View, *, max_rows: int, rows_per_batch: int | None = None
) -> EvaluationSet:
    """Choose rows and targets of an evaluation.

    Args:
        objective: the objective that trains; its `for_evaluation` variant makes the targets.
        view: the rows of the validation split, in the order of the text.
        max_rows: rows to take at most, evenly spaced over the split.
        rows_per_batch: rows of one forward pass, in whole groups. None: 32, or fewer where logits would take more than 256 MiB.

    Raises:
        DataError: the split has no whole group of rows.
    """
    fixed = objective.for_evaluation()
    reader = RowReader(view, name="evaluation", seed=EVALUATION_SEED, shuffle=False)
    group = objective.group_rows
    num_rows = min(max(max_rows, group), view.num_rows) // group * group
    if not num_rows:
        raise DataError(
            f"the validation split has {view.num_rows} rows, fewer than a group of {group} with in-batch negatives.",
            hint="more validation text (corpus.validation_fraction), or a smaller objective.group_rows",
        )
    places = np.arange(num_rows, dtype=np.int64) * view.num_rows // num_rows
    if rows_per_batch is None:
        _, targets = fixed.make_batch(*reader.read_at(places[:1]))
        logits_of_row = sum(target.at.shape[0] for target in targets.values()) * fixed.vocabulary.vocab_size
        rows_per_batch = max(1, min(32, _MAX_LOGITS // logits_of_row))
    rows_per_batch = max(group, rows_per_batch // group * group)
    batches = [
        fixed.make_batch(*reader.read_at(places[start : start + rows_per_batch]))
        for start in range(0, num_rows, rows_per_batch)
    ]
    return EvaluationSet(batches, num_rows, view.num_rows)


def score(
    objective: Objective,
    modules: Mapping[str, nn.Module],
    evaluation_set: EvaluationSet,
    *,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    spread: Spread | None = None,
    by_token: TokenLosses | None = None,
) -> dict[str, float]:
    """Return loss (nats a target), perplexity, accuracy (top 1), accuracy_top5 and the number of targets.

    Every further sum k of a term (`Term.sums`) is reported as k, divided by the targets. With several terms, names are
    prefixed `<term>.`, and `loss` is the sum of the terms' losses by their weights. With `spread` several processes score
    some batches each, and all get the scores of all; sums are then added in another order, in float64. `by_token` is given
    the losses of the first term's targets, which are tokens, of the batches scored here.
    """
    spread = spread or Spread(0, 1, lambda sums: sums)
    sums: dict[tuple[str, str], float] = {}
    objective = objective.for_evaluation()  # the plain loss, whatever smoothing or z-loss trains
    device_type = torch.device(device).type
    with (
        torch.no_grad(),
        autocast(device_type, compute_dtype),
    ):
        for place, counts_here in spread.own(len(evaluation_set.batches)):
            batch, targets = evaluation_set.batches[place]
            on_device = {term: target.to(device) for term, target in targets.items()}
            terms = objective.losses(modules, batch.to(device), on_device, with_details=True)
            counts = objective.counts(targets)
            if by_token is not None and counts_here:
                first = next(iter(terms))
                losses = terms[first].per_target
                assert losses is not None
                by_token.add(targets[first].values, losses, targets[first].weights)
            for name, term in terms.items():
                found: dict[str, Tensor | float]
                found = {"loss": term.loss.double(), "count": counts[name], **term.sums}
                for key, value in found.items():
                    sums[name, key] = sums.get((name, key), 0.0) + (float(value) if counts_here else 0.0)
    totals: dict[str, dict[str, float]] = {}
    for (name, key), sum_of_all in spread.add(sums).items():
        totals.setdefault(name, {})[key] = sum_of_all
    scores: dict[str, float] = {}
    weights = objective.weights(1.0)
    for name, total in totals.items():
        prefix = "" if len(totals) == 1 else f"{name}."
        loss = total["loss"] / total["count"]
        rates = {key: value / total["count"] for key, value in total.items() if key not in ("loss", "count")}
        scores |= {f"{prefix}loss": loss, f"{prefix}perplexity": math.exp(min(loss, 700.0))}
        scores |= {f"{prefix}{_RATES.get(key, key)}": rate for key, rate in rates.items()}
        scores[f"{prefix}targets"] = total["count"]
    if len(totals) > 1:
        scores["loss"] = sum(weights[name] * scores[f"{name}.loss"] for name in totals)
    return scores
