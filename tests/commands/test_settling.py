"""What a recipe leaves to the length of its run is filled in once, stands in the resolved recipe, and nothing else is touched."""

from __future__ import annotations

import json
import math
from dataclasses import replace as replaced

import pytest

from seedbed.commands import deciding, planned_run, pretraining
from seedbed.commands.console import Console
from seedbed.commands.settling import asked_tokens, batch_for, filled_in, settle, settle_as
from seedbed.commands.stages import prepare
from seedbed.config import load_config, validate
from seedbed.optim.base import usual_rate
from seedbed.recipe import Recipe
from tiny_runs import write_sentences

OPEN = {"training": "batch_tokens", "optim": "weight_decay", "model": "hidden_dropout"}


def recipe(**sections) -> Recipe:
    return validate(Recipe, sections, place="test")


def test_longer_runs_have_larger_steps_within_bounds():
    sizes = [batch_for(tokens) for tokens in (1.0, 1e5, 1e6, 4e6, 1.6e7, 1e8, 1e9, 1e13)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 4
    assert (sizes[0], sizes[-1]) == (1024, 2**19)
    assert all(size & (size - 1) == 0 for size in sizes)
    assert batch_for(4e6) == batch_for(12e6) == 2048, "what was measured"
    assert 2**0.3 < (batch_for(1e12) / batch_for(1e8)) ** (1 / math.log2(1e4)) < 2**0.46


def test_rates_follow_the_root_of_small_steps_and_no_further():
    assert usual_rate(8192) == usual_rate(10**6) == 2e-3
    assert usual_rate(2048) == 1e-3
    assert usual_rate(1024) == pytest.approx(2e-3 / 8**0.5, rel=0.01)


def test_rates_fall_with_the_width():
    assert usual_rate(2048, 256) == usual_rate(2048) == 1e-3
    assert usual_rate(8192, 768) == pytest.approx(0.88e-3, rel=0.01)
    assert usual_rate(2048, 128) == usual_rate(2048, 16) == pytest.approx(1.7e-3, rel=0.01), (
        "narrower: not measured"
    )
    rates = {
        name: settle(recipe(**sections), tokens=4e6, text_tokens=None).optim.learning_rate
        for name, sections in {
            "tiny": {"model": {"preset": "tiny"}},
            "mini": {},
            "wide": {"model": {"hidden_size": 512, "num_heads": 8}},
            "small": {"model": {"preset": "small"}},
            "scaled": {"model": {"preset": "small"}, "optim": {"width_scaling": "inverse"}},
            "trained": {"model": {"preset": "small"}, "start": {"path": "somewhere"}},
        }.items()
    }
    assert rates["tiny"] > rates["mini"] > rates["wide"] == rates["small"]
    assert rates["mini"] == rates["scaled"] == rates["trained"]


@pytest.mark.parametrize("objective", ["masked_lm", "causal_lm"])
def test_many_passes_are_regularised_and_few_are_not(objective):
    asked = recipe(objective={"name": objective}, training={"budget_tokens": 1_000_000})
    once = settle(asked, tokens=1e6, text_tokens=1_000_000)
    some, often = (settle(asked, tokens=1e6, text_tokens=n) for n in (100_000, 40_000))
    assert once.model.hidden_dropout == some.model.hidden_dropout == 0.0 < often.model.hidden_dropout
    assert once.optim.weight_decay < some.optim.weight_decay == often.optim.weight_decay
    assert (once.training.batch_tokens, once.optim.learning_rate) == (
        often.training.batch_tokens,
        often.optim.learning_rate,
    )
    native = recipe(model={"name": "native_encoder"})
    assert settle(native, tokens=1e6, text_tokens=60_000).model.many_passes is True
    assert settle(native, tokens=1e6, text_tokens=600_000).model.many_passes is False


def test_what_a_recipe_says_stays():
    given = {
        "model": {"hidden_dropout": 0.0},
        "optim": {"learning_rate": 3e-4, "weight_decay": 0.0},
        "training": {"batch_tokens": 640},
    }
    asked = recipe(**given)
    for text_tokens in (1000, 10**9):
        assert settle(asked, tokens=1e7, text_tokens=text_tokens) == asked
    other = settle(recipe(optim={"name": "lamb"}), tokens=1e7, text_tokens=10**9)
    assert other.optim.learning_rate == recipe(optim={"name": "lamb"}).optim.learning_rate, "not AdamW's rate"


def test_a_model_that_exists_describes_itself():
    asked = recipe(start={"path": "somewhere"})
    assert settle(asked, tokens=1e9, text_tokens=10).model == asked.model
    assert settle(asked, tokens=1e9, text_tokens=10).optim.weight_decay is not None


def test_a_text_that_is_not_known_leaves_open_what_follows_from_it():
    found = settle(recipe(), tokens=4e6, text_tokens=None)
    assert None not in (found.training.batch_tokens, found.optim.learning_rate)
    assert (found.optim.weight_decay, found.model.hidden_dropout) == (None, None)


def test_what_is_asked_for_in_tokens():
    assert asked_tokens(recipe(training={"budget_minutes": 3})) is None
    assert asked_tokens(recipe(training={"budget_tokens": 5_000})) == 5_000
    assert asked_tokens(recipe(training={"budget_steps": 10, "batch_tokens": 256})) == 2_560


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_sentences(tmp_path_factory.mktemp("text"))


def toy(text, run, **training):
    return recipe(
        run=str(run),
        corpus={"inputs": [str(text)], "validation_fraction": 0.2},
        tokenizer={"vocab_size": 300, "num_reserved": 4},
        data={"row_length": 16},
        model={"num_layers": 1, "hidden_size": 32, "num_heads": 2},
        training={"micro_batch_rows": 16, "validation_rows": 8, **training},
        runtime={"threads": 1},
    )


def train(asked, **options):
    console = Console(as_json=True)
    return pretraining.pretrain(asked, prepare(asked, console), console, **options)


def resolved(run):
    return json.loads((run / "pretrain" / "resolved.json").read_text(encoding="utf-8"))


def test_a_run_says_what_it_filled_in_and_repeats_it(text, tmp_path):
    asked = toy(text, tmp_path / "run", budget_tokens=200_000)
    train(asked)
    said = resolved(tmp_path / "run")
    for section, key in OPEN.items():
        assert said["requested"][section][key] is None
        assert said["resolved"][section][key] is not None
    assert said["resolved"]["model"]["hidden_dropout"] == 0.1, "the text was read more than twenty times"
    filled = filled_in(said["requested"], said["resolved"])
    assert filled["model.hidden_dropout"] == 0.1
    assert set(filled) == {
        "training.batch_tokens",
        "optim.learning_rate",
        "optim.weight_decay",
        "model.hidden_dropout",
    }
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["embedding_dropout"] == 0.1
    again = load_config(Recipe, tmp_path / "run" / "recipe.yaml", [f"run={tmp_path / 'again'}"])
    assert settle(again, tokens=1.0, text_tokens=10**9) == again, "nothing is left open"
    train(again)
    assert pretraining.run_digest(tmp_path / "again") == pretraining.run_digest(tmp_path / "run")


def test_a_stopped_run_goes_on_with_what_it_was_filled_in_with(text, tmp_path, monkeypatch):
    train(toy(text, tmp_path / "whole", budget_tokens=200_000))
    asked = toy(text, tmp_path / "run", budget_tokens=200_000)
    with pytest.raises(pretraining.Interrupted):
        train(asked, stop_after=3)
    monkeypatch.setattr(planned_run, "settle", None)  # nothing is chosen anew
    train(asked)
    assert pretraining.run_digest(tmp_path / "run") == pretraining.run_digest(tmp_path / "whole")


def test_minutes_are_turned_into_tokens_before_the_rest_follows(text, tmp_path, monkeypatch):
    """A probe that finds the text read often sends the run back to the start, as another one."""
    plain, probed = planned_run.decide, []

    def decide(recipe, setting, evaluate):
        probed.append((recipe.training.batch_tokens, setting.model.config.hidden_dropout))
        plan = plain(recipe, setting, evaluate)
        return replaced(plan, num_windows=200_000 // (plan.rows_per_step * 16))

    monkeypatch.setattr(planned_run, "decide", decide)
    train(toy(text, tmp_path / "run", budget_minutes=0.02))
    assert [dropout for _, dropout in probed] == [0.0, 0.1]
    said = resolved(tmp_path / "run")["resolved"]
    assert (said["training"]["batch_tokens"], said["model"]["hidden_dropout"]) == probed[-1]
    assert said["training"]["budget_steps"] == 200_000 // probed[-1][0]


def test_filled_in_keys_come_from_the_run_on_a_resume():
    asked = recipe(training={"budget_minutes": 5})
    sections = {"training": {"batch_tokens": 4096, "budget_steps": 7}, "optim": {"weight_decay": 0.5}}
    found = settle_as(asked, sections)
    assert (found.training.batch_tokens, found.optim.weight_decay) == (4096, 0.5)
    assert (found.training.budget_steps, found.training.budget_minutes) == (None, 5)


def test_a_sweep_of_rates_takes_the_steps_of_the_run(text, tmp_path):
    asked = toy(text, tmp_path / "run", budget_tokens=4_000_000)
    console = Console(as_json=True)
    step = deciding.steps_from_start(asked, prepare(asked, console), 2)
    assert step(1e-4).losses
