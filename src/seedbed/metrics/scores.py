"""Score predictions against labels: accuracy, F1, Matthews, Spearman, Pearson.

NumPy only. All take the true values first, as scikit-learn does. Where a score is undefined (a correlation with a
constant, F1 without any positive) it is 0.0, so that a majority baseline has a figure; SciPy gives NaN for the first,
which JSON cannot hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman"]

Classes = Sequence[int] | npt.NDArray[np.int64]
Numbers = Sequence[float] | npt.NDArray[np.float64]


def accuracy(true: Classes, predicted: Classes) -> float:
    """Return the share of examples whose class is right."""
    return float(np.mean(np.asarray(true) == np.asarray(predicted)))


def f1(true: Classes, predicted: Classes) -> float:
    """Return the F1 of class 1, the positive one of two."""
    return _f1_of(np.asarray(true) == 1, np.asarray(predicted) == 1)


def f1_macro(true: Classes, predicted: Classes) -> float:
    """Return the mean F1 over the classes that occur among the true or the predicted ones."""
    truth, guess = np.asarray(true), np.asarray(predicted)
    return float(np.mean([_f1_of(truth == c, guess == c) for c in np.union1d(truth, guess)]))


def matthews(true: Classes, predicted: Classes) -> float:
    """Return the Matthews correlation of classes (Gorodkin 2004 for more than two); in [-1, 1], 0 at chance."""
    truth, guess = np.asarray(true), np.asarray(predicted)
    classes = np.union1d(truth, guess)
    of_truth = np.array([(truth == c).sum() for c in classes], dtype=np.float64)
    of_guess = np.array([(guess == c).sum() for c in classes], dtype=np.float64)
    count, right = float(len(truth)), float((truth == guess).sum())
    covariance = right * count - of_truth @ of_guess
    spread = np.sqrt(count**2 - of_truth @ of_truth) * np.sqrt(count**2 - of_guess @ of_guess)
    return float(covariance / spread) if spread > 0 else 0.0


def pearson(true: Numbers, predicted: Numbers) -> float:
    """Return the linear correlation, in [-1, 1]."""
    truth, guess = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    truth, guess = truth - truth.mean(), guess - guess.mean()
    spread = float(np.sqrt((truth @ truth) * (guess @ guess)))
    return float(truth @ guess) / spread if spread > 0 else 0.0


def spearman(true: Numbers, predicted: Numbers) -> float:
    """Return the rank correlation, in [-1, 1]; equal values share the mean of their ranks."""
    return pearson(_ranks(np.asarray(true, np.float64)), _ranks(np.asarray(predicted, np.float64)))


def _f1_of(true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> float:
    both = float((true & predicted).sum())
    total = float(true.sum() + predicted.sum())
    return 2.0 * both / total if total else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ranks from 1, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2.0)[inverse]
    return ranks
