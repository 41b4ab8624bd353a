"""Every experiment is a comparison that can be run as it stands, says what it is, and has arms that are recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedbed.commands.arm import arm_folder, recipe_of, settings_digest
from seedbed.compare.config import CompareConfig
from seedbed.config import load_config

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
        (text,) = recipe.corpus.inputs
        assert (ROOT / text).exists()
    assert len(folders) == len(config.arms) * len(config.seed_list())


def test_the_folder_tells_what_it_is():
    said = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert "seedbed compare experiments/" in said
