"""A plan as a user makes it: probes, forecasts, advice; a finished run held against its forecast."""

from __future__ import annotations

import json

import pytest
import yaml

from seedbed.cli import main
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
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["probes"]) == 4
    told = plan["forecasts"]["tiny"]
    assert told["low"] < told["loss"] < told["high"]
    assert told["tokens"] == round(told["tokens_per_second"] * 6)
    assert told["epochs"] == pytest.approx(told["tokens"] / plan["unique_tokens"], rel=1e-4)
    assert plan["advice"][0].startswith("In 6 s tiny reads")
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
    assert again["forecasts"] == plan["forecasts"]


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
