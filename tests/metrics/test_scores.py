"""Our scores against scikit-learn and SciPy, and what they do where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seedbed.metrics import METRICS

REFERENCES = {
    "accuracy": lambda t, p: sklearn.accuracy_score(t, p),
    "f1": lambda t, p: sklearn.f1_score(t, p, zero_division=0),
    "f1_macro": lambda t, p: sklearn.f1_score(t, p, average="macro", zero_division=0),
    "matthews": lambda t, p: sklearn.matthews_corrcoef(t, p),
    "pearson": lambda t, p: stats.pearsonr(t, p).statistic,
    "spearman": lambda t, p: stats.spearmanr(t, p).statistic,
}


def test_every_metric_has_a_reference():
    assert set(REFERENCES) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("classes", [2, 5])
def test_parity(name, classes):
    random = np.random.default_rng(classes)
    if METRICS[name].kind == "regression":
        true = random.integers(0, 20, 300) / 4  # with ties
        guess = true + random.normal(size=300).round(1)
    elif name == "f1":
        true, guess = random.integers(0, 2, 300), random.integers(0, 2, 300)
    else:
        true = random.integers(0, classes, 300)
        guess = np.where(random.random(300) < 0.6, true, random.integers(0, classes, 300))
    assert METRICS[name].score(true, guess) == pytest.approx(REFERENCES[name](true, guess), abs=1e-9)
    assert METRICS[name].score(true.tolist(), guess.tolist()) == METRICS[name].score(true, guess)


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_answer_scores_one(name):
    true = [0, 1, 1, 0, 1]
    assert METRICS[name].score(true, true) == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore:A single label:UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_parity_on_small_odd_cases(pairs):
    true, guess = (np.array(column) for column in zip(*pairs, strict=True))
    for name in ("accuracy", "f1_macro", "matthews"):
        assert METRICS[name].score(true, guess) == pytest.approx(REFERENCES[name](true, guess), abs=1e-9)


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman", "f1"])
def test_a_constant_answer_scores_zero(name):
    assert METRICS[name].score([0, 1, 0, 1], [0, 0, 0, 0]) == 0.0
