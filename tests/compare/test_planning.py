"""A plan from planted probes: every preset by its own curve, where its probes are enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedbed.compare.planning import make_plan
from seedbed.compare.scaling import Probe, fit_curve

SPEEDS = {"tiny": 16e6 / 600, "mini": 4e6 / 600}


def line(preset, tokens):
    """Two sizes that fall along straight lines over the logarithm, the larger one steeper."""
    return {
        "tiny": 5.4 - 0.55 * math.log(tokens / 2e6),
        "mini": 5.2 - 0.80 * math.log(tokens / 1e6),
    }[preset]


def results(lengths, *, kind="causal", bigram=5.45, noise=0.01):
    draw = np.random.default_rng(0)
    return {
        (f"{preset}-{tokens}", seed): {
            "kind": kind,
            "flops": 6.0 * {"tiny": 1.5e6, "mini": 5.5e6}[preset] * tokens,
            "tokens": tokens,
            "train_tokens": 20_000_000,
            "valid": {"loss": line(preset, tokens) + noise * draw.normal()},
            "baselines": {"bigram": bigram},
        }
        for preset, own in lengths.items()
        for tokens in own
        for seed in range(3)
    }


LENGTHS = {
    "tiny": (500_000, 1_000_000, 2_000_000, 4_000_000),
    "mini": (125_000, 250_000, 500_000, 1_000_000),
}


def test_each_preset_goes_by_its_own_curve():
    plan = make_plan(results(LENGTHS, bigram=1.0), SPEEDS, 10.0)
    for preset, told in plan["forecasts"].items():
        truth = line(preset, told["tokens"])
        assert told["low"] <= truth <= told["high"]
        assert told["high"] - told["low"] < 0.3
        assert told["loss"] == pytest.approx(truth, abs=0.1)
    assert not any("bigram" in line for line in plan["advice"])
    every = fit_curve([Probe(p["active"], p["tokens"], p["loss"]) for p in plan["probes"]], unique=2e7)
    told = plan["forecasts"]["tiny"]
    shared = every.forecast(told["active"], told["tokens"])
    assert not shared.low <= line("tiny", told["tokens"]) <= shared.high, (
        "one slope for both is what fails here"
    )


def test_a_preset_on_the_plateau_leans_on_the_others():
    masked = make_plan(results(LENGTHS, kind="masked"), SPEEDS, 10.0)
    # One length of mini and two of tiny are below the bigram: too few of each, enough of both.
    below = {(p["preset"], p["tokens"]) for p in masked["probes"] if p["loss"] < p["bigram"]}
    assert {preset for preset, _ in below} == {"tiny", "mini"}
    assert len(below) == 3
    assert any("did not get below the bigram" in line for line in masked["advice"])
    off = make_plan(results(LENGTHS, kind="masked", bigram=9.0), SPEEDS, 10.0)
    wide = {p: told["high"] - told["low"] for p, told in masked["forecasts"].items()}
    assert all(wide[p] > told["high"] - told["low"] for p, told in off["forecasts"].items())


def test_a_causal_model_has_no_plateau_and_bends_at_the_bigram():
    causal = make_plan(results(LENGTHS), SPEEDS, 10.0)
    assert not any("bigram" in line for line in causal["advice"])
    straight = make_plan(results(LENGTHS, bigram=1.0), SPEEDS, 10.0)
    assert any("a causal model's curve bends" in line for line in causal["advice"])
    assert not any("a causal model's curve bends" in line for line in straight["advice"])
    for preset, told in causal["forecasts"].items():
        assert told["loss"] > straight["forecasts"][preset]["loss"] + 0.05


def test_longer_is_told_and_never_worse():
    plan = make_plan(results(LENGTHS), SPEEDS, 10.0)
    losses = [told["loss"] for told in plan["by_length"]]
    assert losses == sorted(losses, reverse=True)
    assert [told["minutes"] for told in plan["by_length"]] == [5.0, 10.0, 20.0, 40.0]
    (same,) = [told for told in plan["by_length"] if told["times"] == 1]
    assert same["loss"] == min(told["loss"] for told in plan["forecasts"].values())
