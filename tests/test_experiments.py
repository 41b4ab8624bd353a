"""Every experiment is a comparison that can be run as it stands, says what it is, and has arms that are recipes."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from seedbed.commands.arm import arm_folder, recipe_of, settings_digest
from seedbed.compare.config import CompareConfig
from seedbed.compare.page import drawings
from seedbed.config import load_config
from seedbed.page import standalone

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_is_valid_and_explained(path):
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("command:", "text:", "hardware:", "time:"):
        assert any(word in line for line in head), word
    assert f"experiments/{path.name}" in "".join(head)
    config = load_config(CompareConfig, path)
    assert len(config.arms) >= 2
    folders = set()
    for arm in config.arms:
        for seed in config.seed_list():
            recipe = recipe_of(config, arm, seed)
            assert recipe.training.seed == seed
            folders.add(arm_folder(config, arm, seed))
            assert settings_digest(config, arm, seed) == settings_digest(config, arm, seed)
        assert recipe.corpus.inputs
        assert all((ROOT / text).exists() for text in recipe.corpus.inputs)
    assert len(folders) == len(config.arms) * len(config.seed_list())


PUBLISHED = sorted((ROOT / "experiments" / "results").glob("*.json"))
PLANS = [path for path in PUBLISHED if path.stem.startswith("plan-")]
RESULTS = [path for path in PUBLISHED if path not in PLANS]


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_a_published_plan_was_checked_and_the_docs_say_how_it_ended(path):
    text = path.read_text(encoding="utf-8")
    assert path.with_suffix(".png").stat().st_size > 5_000
    assert not re.search(r'"(/|~/|\.\./)', text)
    told, said = json.loads(text), (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    assert told["checks"]
    for check in told["checks"]:
        row = [
            f"{check['forecast']:.3f}",
            f"{check['low']:.3f} to {check['high']:.3f}",
            f"{check['loss']:.3f}",
        ]
        side = "inside" if check["is_inside"] else "**outside**"
        assert " | ".join([*row, f"{check['error']:+.3f}, {side}"]) in said


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_result_is_one_of_an_experiment_and_names_no_folder(path):
    text = path.read_text(encoding="utf-8")
    assert path.stem.partition("-")[0] in {experiment.stem for experiment in EXPERIMENTS}
    assert path.with_suffix(".png").stat().st_size > 5_000
    told = json.loads(text)
    assert {result["arm"] for result in told["results"]} <= set(told["arms"])
    assert len(told["results"]) >= 2
    assert not re.search(r'"(/|~/|\.\./)', text)


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_drawing_in_the_docs_is_of_the_published_result(path):
    drawn = ROOT / "docs" / f"{path.stem}.svg"
    if drawn.exists():
        told = json.loads(path.read_text(encoding="utf-8"))
        assert drawn.read_text(encoding="utf-8") == standalone(drawings(told)["measure"])


def test_the_list_names_every_experiment():
    named = set(re.findall(r"`(\w+)`", (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")))
    assert {path.stem for path in EXPERIMENTS} <= named


def test_folders_are_taken_out_of_results():
    spec = importlib.util.spec_from_file_location("publish_result", ROOT / "tools" / "publish_result.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told = {"inputs": ["/home/me/my text/a.txt.gz", "../b.txt", "b.txt"], "what": "tokens/s, 1 / 2"}
    assert module.without_folders(told) == {
        "inputs": ["a.txt.gz", "b.txt", "b.txt"],
        "what": "tokens/s, 1 / 2",
    }


def test_the_folder_tells_what_it_is():
    said = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert "seedbed compare experiments/" in said
