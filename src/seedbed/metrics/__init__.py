"""Scores of predictions, by name; higher is better for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from seedbed.metrics.scores import accuracy, f1, f1_macro, matthews, pearson, spearman

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A score: (true values, predicted values) -> number, and the kind of task it judges."""

    score: Callable[[Any, Any], float]
    kind: Literal["classification", "regression"]


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, "classification"),
    "f1": Metric(f1, "classification"),
    "f1_macro": Metric(f1_macro, "classification"),
    "matthews": Metric(matthews, "classification"),
    "pearson": Metric(pearson, "regression"),
    "spearman": Metric(spearman, "regression"),
}
