"""A probe finds what is in the vectors, and no more; its penalty is chosen without the examples that are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from seedbed.evaluation import probes
from seedbed.evaluation.probes import probe
from seedbed.tasks import Example, TaskConfig, TaskData


def task(features, labels, *, kind="classification", is_pair=False, train=300):
    names = tuple(sorted({str(label) for label in labels})) if kind == "classification" else ()
    examples = [
        Example(str(n), str(n) if is_pair else None, str(label) if names else float(label), "f", n)
        for n, label in enumerate(labels)
    ]
    config = TaskConfig(name="t", kind=kind, train=["t"])
    return TaskData(config, names, {"train": examples[:train], "dev": examples[train:]}, (), 0)


@pytest.fixture
def vectors(monkeypatch):
    """Let a text be the number of its vector."""
    held = {}

    def of(model, tokenizer, examples, dtype):
        return held["x"][[int(e.text) for e in examples]]

    monkeypatch.setattr(probes, "_features", of)
    return held


def test_it_finds_a_class_that_is_there_and_none_that_is_not(vectors):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 20, generator=draw, dtype=torch.float64)
    vectors["x"] = x
    there = probe(None, None, task(x, (x[:, 3] + x[:, 7] > 0).int().tolist()))
    assert there.scores["accuracy"] > 0.93
    assert there.right.mean() == there.scores["accuracy"]
    chance = probe(None, None, task(x, torch.randint(0, 2, (600,), generator=draw).tolist()))
    assert abs(chance.scores["accuracy"] - 0.5) < 0.1
    assert chance.penalty >= there.penalty, "noise asks for more of it"


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_it_is_scikit_learns_classifier(penalty):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(200, 6, generator=draw, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(200, generator=draw, dtype=torch.float64) > 0).long() + (
        x[:, 1] > 1
    ).long()
    weights = probes._logistic(x, y, 3, penalty)
    theirs = LogisticRegression(C=1 / (penalty * 200), tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
    ours = probes._outputs(weights, x).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(x.numpy()), atol=2e-3)


def test_numbers_are_fitted_by_ridge_regression(vectors):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(500, 8, generator=draw, dtype=torch.float64)
    vectors["x"] = x
    y = (2 * x[:, 0] - x[:, 5] + 3).tolist()
    found = probe(None, None, task(x, y, kind="regression"))
    assert found.scores["spearman"] > 0.99
    assert found.right.size == 0
    centred = x - x.mean(0)
    weights = probes._ridge(centred, torch.tensor(y, dtype=torch.float64), 1, 0.1)
    theirs = Ridge(alpha=0.1 * 500).fit(centred.numpy(), y)
    np.testing.assert_allclose(weights[:-1, 0].numpy(), theirs.coef_, rtol=1e-6)


def test_the_answer_is_a_function_of_the_features(vectors):
    draw = torch.Generator().manual_seed(3)
    vectors["x"] = torch.randn(400, 10, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 3, (400,), generator=draw).tolist()
    first, second = (probe(None, None, task(None, labels)) for _ in range(2))
    assert first.scores == second.scores
    assert (first.right == second.right).all()
