"""A plan as a user makes it: probes, forecasts, advice; a finished run held against its forecast."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml

from seedbed.cli import main
from seedbed.commands import plan
from seedbed.recipe import Recipe
from tiny_runs import tiny_sections, write_sentences


def test_probes_forecast_and_check(tmp_path, capsys):
    text = write_sentences(tmp_path / "text")
    recipe = tiny_sections()
    recipe["corpus"]["inputs"] = [str(text)]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"run": str(tmp_path / "run")}), encoding="utf-8")
    words = ["plan", str(path), "--minutes", "0.1", "--presets", "tiny", "--largest", "4"]
    words += ["--out", str(tmp_path / "plan"), "--json"]
    assert main(words) == 0
    told_plan = json.loads(capsys.readouterr().out)
    assert len(told_plan["probes"]) == 4
    told = told_plan["forecasts"]["tiny"]
    assert told["low"] < told["loss"] < told["high"]
    assert told["tokens"] == round(told["tokens_per_second"] * 6)
    assert told["epochs"] == pytest.approx(told["tokens"] / told_plan["unique_tokens"], rel=1e-4)
    assert told_plan["advice"][0].startswith("In 6 s tiny reads")
    assert [(told["minutes"], told["preset"]) for told in told_plan["by_length"]] == [
        (minutes, "tiny") for minutes in (0.05, 0.1, 0.2, 0.4)
    ]
    assert told_plan["by_length"][1]["loss"] == told["loss"]
    losses = [told["loss"] for told in told_plan["by_length"]]
    assert losses == sorted(losses, reverse=True), "longer is better"
    assert any(
        line.startswith("By the same curve, ") and " in 3 s (tiny" in line for line in told_plan["advice"]
    )
    page = (tmp_path / "plan" / "plan.html").read_text(encoding="utf-8")
    assert "tiny, probes" in page
    # The run that was planned, and what was said of it; no probe is trained again.
    tokens = told["tokens"]
    assert main(["run", str(path), f"training.budget_tokens={tokens}"]) == 0
    before = sorted(p.name for p in (tmp_path / "plan" / "arms").iterdir())
    capsys.readouterr()
    assert main([*words, "--check", str(tmp_path / "run")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in (tmp_path / "plan" / "arms").iterdir()) == before
    (check,) = again["checks"]
    assert check["loss"] == json.loads((tmp_path / "run" / "summary.json").read_text())["valid"]["loss"]
    assert abs(check["times_the_largest_probe"] - 4) < 0.2
    assert check["is_inside"] == (check["low"] <= check["loss"] <= check["high"])
    assert again["forecasts"] == told_plan["forecasts"]


def test_mistakes_are_named(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {preset: mini}\n", encoding="utf-8")
    assert main(["plan", str(path), "--minutes", "5", "--presets", "minni"]) == 2
    assert "minni" in capsys.readouterr().err
    assert main(["plan", str(path), "--minutes", "0"]) == 2
    assert "no room for probes" in capsys.readouterr().err


def test_probes_that_cannot_run_are_named(tmp_path, capsys):
    """A row longer than the model reads: every probe fails, and that is no bug of ours."""
    recipe = tiny_sections()
    recipe["corpus"]["inputs"] = [str(write_sentences(tmp_path / "text"))]
    recipe["data"]["row_length"] = 4096
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    words = ["plan", str(path), "--minutes", "0.1", "--presets", "tiny", "--out", str(tmp_path / "plan")]
    assert main(words) == 3
    assert "first probes of tiny could not be run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "extra"),
    [
        ((4.0, 4.5, 4.9, 5.1), []),
        ((4.0, 4.5, 5.9, 6.1), [707, 354]),
        ((4.0, 5.7, 5.9, 6.1), [707]),
        ((5.6, 5.7, 5.9, 6.1), []),
    ],
    ids=["all past", "two past", "one past", "none past"],
)
def test_a_hard_bigram_is_met_with_longer_probes(tmp_path, monkeypatch, losses, extra):
    """Halves that are still on the plateau tell nothing; the lengths between those that are off it do."""
    recipe = Recipe()
    options = argparse.Namespace(out=tmp_path, seeds=1, minutes=1.0, largest=4.0)
    config = plan._probes(options, recipe, ["mini"], {"mini": 1000 * 4 / 60})
    assert list(config.arms) == ["mini-1000", "mini-500", "mini-250", "mini-125"]
    said = {
        (arm, 0): {"kind": "masked", "valid": {"loss": loss}, "baselines": {"bigram": 5.5}}
        for arm, loss in zip(config.arms, losses, strict=True)
    }
    monkeypatch.setattr(plan, "_results", lambda _: said)
    denser = plan._denser(options, recipe, config)
    assert list(denser.arms) == [*config.arms, *(f"mini-{tokens}" for tokens in extra)]
    assert (denser is config) == (not extra)
    causal = {key: told | {"kind": "causal"} for key, told in said.items()}
    monkeypatch.setattr(plan, "_results", lambda _: causal)
    assert plan._denser(options, recipe, config) is config, "a causal model leaves no plateau"
