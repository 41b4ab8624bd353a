"""`seedbed strategies` names every objective with all a user must know, and only models that exist."""

from __future__ import annotations

import json

import pytest

from seedbed.cli import main
from seedbed.models import MODELS
from seedbed.objectives import OBJECTIVES
from seedbed.objectives.combination import COMBINATIONS

ALL = {**OBJECTIVES, **COMBINATIONS}


def test_every_objective_says_what_it_is(capsys):
    assert main(["strategies", "--json"]) == 0
    listed = {s["name"]: s for s in json.loads(capsys.readouterr().out)["strategies"]}
    assert listed.keys() == ALL.keys()
    for name, strategy in listed.items():
        assert all(strategy[key] for key in ("fits", "needs", "use", "source")), name
        assert name == "mixture" or strategy["default_model"] in strategy["models"], name


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_only_what_fits_is_listed(stack, capsys):
    main(["strategies", "--fits", stack, "--json"])
    listed = [s["name"] for s in json.loads(capsys.readouterr().out)["strategies"]]
    assert listed == [name for name, kind in ALL.items() if stack in kind.fits]


def test_a_family_is_what_its_description_says():
    for name, kind in MODELS.items():
        assert kind(preset="tiny").build(vocab_size=64).stack == kind.stack, name


def test_the_table_is_readable_in_a_pipe(capsys):
    main(["strategies"])
    out = capsys.readouterr().out
    assert "masked_lm\n    trains   encoder" in out
    assert max(map(len, out.splitlines())) < 160
