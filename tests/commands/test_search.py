"""A search as a user runs it: trial 0 is the recipe, trials are kept, one that was killed goes on, the page says what was gained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import seedbed
from seedbed.cli import main
from tiny_runs import tiny_sections, write_sentences


def write(tmp_path, *, trials=4, tokens=2048, **more):
    recipe = tiny_sections()
    recipe["corpus"]["inputs"] = [str(write_sentences(tmp_path / "text"))]
    recipe["optim"] = {"learning_rate": 0.002}
    data = {
        "out": str(tmp_path / "out"),
        "recipe": recipe,
        "space": {
            "optim.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
            "objective.unit": {"choices": ["token", "word"]},
        },
        "trials": trials,
        "cost": {"tokens": tokens},
        **more,
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_the_recipe_is_trial_0_and_more_trials_go_on(tmp_path, capsys):
    path = write(tmp_path, trials=3)
    assert main(["search", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["trials"]) == 3
    first = told["trials"][0]
    assert first["is_default"]
    assert first["values"] == {"optim.learning_rate": 0.002, "objective.unit": "token"}
    assert told["default"]["loss"] == first["loss"]
    assert told["best"]["loss"] == min(t["loss"] for t in told["trials"] if t["loss"] is not None)
    assert told["gain"] == pytest.approx(first["loss"] - told["best"]["loss"])
    assert main(["search", str(path), "trials=5", "--json"]) == 0
    more = json.loads(capsys.readouterr().out)
    assert more["trials"][:3] == told["trials"]
    assert len(more["trials"]) == 5
    assert set(more["importance"]) == {"optim.learning_rate", "objective.unit"}
    page = (tmp_path / "out" / "search.html").read_text(encoding="utf-8")
    assert "Which keys mattered" in page
    assert "(default)" in page


def test_a_killed_trial_goes_on_with_its_values(tmp_path, capsys):
    path = write(tmp_path, trials=2, tokens=40_960)
    paths = [str(Path(seedbed.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    killed = subprocess.Popen(
        [sys.executable, "-m", "seedbed", "search", str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        logs = list((tmp_path / "out" / "arms").glob("*/pretrain/metrics.jsonl"))
        if any(log.read_text().count("\n") > 30 for log in logs):
            break
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert main(["search", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    done = [t for t in told["trials"] if t["loss"] is not None]
    assert len(done) == 2
    assert done[0]["is_default"]
    assert len(list((tmp_path / "out" / "arms").iterdir())) == 2, "nothing was trained from the start again"


@pytest.mark.parametrize("spared_share", [0.4, 1.0])
def test_what_falls_behind_is_ended_early(tmp_path, capsys, monkeypatch, spared_share):
    """Rates far too small are behind at the first validations, and not ended before their share of the run."""
    path = write(
        tmp_path,
        trials=4,
        tokens=61_440,
        spared_trials=1,
        spared_share=spared_share,
        space={"optim.learning_rate": {"choices": [0.002, 1e-7, 2e-7, 3e-7]}},
    )
    assert main(["search", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    states = {t["values"]["optim.learning_rate"]: t["state"] for t in told["trials"]}
    assert states[0.002] == "complete"
    assert told["best"]["values"]["optim.learning_rate"] == 0.002
    assert ("pruned" in states.values()) == (spared_share < 1.0)


def test_mistakes_are_named(tmp_path, capsys):
    assert main(["search", str(write(tmp_path, space={}))]) == 2
    assert "nothing to search" in capsys.readouterr().err
    assert main(["search", str(write(tmp_path, space={"optim.rate": {"low": 1, "high": 2}}))]) == 2
    assert "no key optim.rate" in capsys.readouterr().err
    narrow = {"optim.learning_rate": {"low": 0.1, "high": 0.2}}
    assert main(["search", str(write(tmp_path, space=narrow))]) == 2
    assert "0.002" in capsys.readouterr().err
    assert main(["search", str(write(tmp_path, space={"optim.learning_rate": {"low": 2, "high": 1}}))]) == 2
    assert "must be below" in capsys.readouterr().err
