"""Pretraining with the switches on: it trains, resumes exactly, exports, and refuses what makes no sense before the first step."""

from __future__ import annotations

import json

import pytest

from seedbed.commands.console import Console
from seedbed.commands.pretraining import Interrupted
from seedbed.commands.stages import prepare
from seedbed.config import validate
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.recipe import Recipe
from tiny_runs import decided, train, values, write_sentences


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_sentences(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    recipe = validate(Recipe, values(corpus, tmp_path_factory.mktemp("store") / "run"), place="test")
    return prepare(recipe, Console(as_json=True))


@pytest.mark.parametrize(
    "sections",
    [
        {"regularisation": {"r_drop": 1.0}, "objective": {"name": "masked_lm"}},
        {"regularisation": {"adversarial": {"name": "free_lb"}}, "objective": {"name": "causal_lm"}},
        {"regularisation": {"adversarial": {"name": "smart"}}, "objective": {"name": "sentence_order"}},
        {"model": {"stochastic_depth": 0.3}, "objective": {"name": "masked_lm"}},
    ],
    ids=["r_drop", "free_lb", "smart", "stochastic_depth"],
)
def test_it_trains_resumes_exactly_and_exports(sections, prepared, corpus, tmp_path):
    data = values(corpus, tmp_path / "whole", **sections)
    summary = train(prepared, data)
    assert summary["valid_loss"] == summary["valid_loss"]
    lines = [
        json.loads(line) for line in (tmp_path / "whole/pretrain/metrics.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if line["kind"] == "step"]
    if sections.get("regularisation", {}).get("r_drop"):
        assert all(line["losses"]["r_drop"] > 0 for line in steps)
    plain = values(corpus, tmp_path / "plain", objective=sections["objective"])
    assert train(prepared, plain)["valid"].keys() == summary["valid"].keys(), (
        "evaluation is the plain objective's"
    )
    assert decided(tmp_path / "plain") != decided(tmp_path / "whole")

    data["run"] = str(tmp_path / "cut")
    with pytest.raises(Interrupted):
        train(prepared, data, stop_after=2)
    train(prepared, data)
    assert decided(tmp_path / "cut") == decided(tmp_path / "whole")


def test_what_makes_no_sense_is_refused_before_the_first_step(prepared, corpus, tmp_path):
    data = values(corpus, tmp_path / "run", regularisation={"r_drop": 1.0}, model={"hidden_dropout": 0.0})
    with pytest.raises(ConfigError, match="R-Drop"):
        train(prepared, data)
    data = values(
        corpus, tmp_path / "run", regularisation={"r_drop": 1.0}, objective={"name": "replaced_token"}
    )
    with pytest.raises(IncompatibleError, match="replaced_token"):
        train(prepared, data)
    assert not (tmp_path / "run" / "pretrain" / "metrics.jsonl").exists()
