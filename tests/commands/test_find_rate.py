"""The sweep finds the rate of a problem whose answer is known, ends when it should, and leaves the run alone."""

import itertools
import json
import math

import pytest
import yaml

from seedbed.cli import main
from seedbed.commands.find_rate import Sweep, draw, rates_between, sweep
from seedbed.errors import ConfigError, NumericError
from tiny_runs import TINY, write_toy_text


def bowl(curvature):
    """Descend curvature * x^2 / 2 by gradients with noise: it diverges above a rate of 2 / curvature."""
    x, number = 3.0, 0

    def loss_of(rate):
        nonlocal x, number
        loss = 1.0 + 0.5 * curvature * x * x
        number += 1
        x -= rate * (curvature * x + 0.3 * curvature * math.sin(7.0 * number))
        return loss if math.isfinite(loss) else math.nan

    return loss_of


def test_rates_rise_by_the_same_factor():
    rates = rates_between(1e-4, 1.0, 9 + 4)
    assert rates[0] == pytest.approx(1e-4)
    assert rates[-1] == pytest.approx(1.0)
    assert {round(b / a, 9) for a, b in itertools.pairwise(rates)} == {round(10 ** (4 / 12), 9)}
    for bad in ((1.0, 0.1, 50), (0.0, 1.0, 50), (1e-3, 1.0, 5)):
        with pytest.raises(ConfigError):
            rates_between(*bad)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 10.0])
def test_the_lowest_loss_is_where_steps_stop_helping(curvature):
    """From 2 / curvature on a step makes it worse."""
    found = sweep(bowl(curvature), rates_between(1e-4, 1000.0, 200), smoothing=0.5)
    assert found.has_diverged
    assert len(found.rates) < 200
    assert 0.05 / curvature < found.lowest < 2.2 / curvature
    assert found.suggested == pytest.approx(found.lowest / 10)
    assert found.steepest < found.lowest


def test_smoothing_has_no_bias():
    losses = iter([5.0] * 20)
    found = sweep(lambda rate: next(losses), rates_between(1e-4, 1.0, 20), smoothing=0.98)
    assert found.smoothed == pytest.approx([5.0] * 20)


def test_a_loss_that_is_not_finite_ends_the_sweep():
    losses = [5.0 - 0.1 * i for i in range(15)] + [math.nan]
    given = iter(losses)
    found = sweep(lambda rate: next(given), rates_between(1e-4, 1.0, 40), smoothing=0.0)
    assert found.has_diverged
    assert found.losses == losses[:15]
    assert found.lowest == found.rates[14]
    with pytest.raises(NumericError, match="not finite after 0 steps"):
        sweep(lambda rate: math.nan, rates_between(1e-4, 1.0, 40), smoothing=0.0)


def test_the_page_shows_the_figures():
    found = Sweep([1e-3, 1e-2, 1e-1], [3.0, 2.0, 4.0], [3.0, 2.0, 4.0], 1e-2, 1e-3, 1e-3, True)
    facts = {
        "model": "m <x>",
        "objective": "o",
        "optimizer": "adamw",
        "batch_tokens": 8192,
        "recipe_rate": 2e-3,
    }
    html = draw(found, facts)
    assert "m &lt;x&gt;" in html
    assert "suggested peak rate" in html
    assert "risen above" in html


def test_it_sweeps_a_recipe_and_leaves_the_run_alone(tmp_path, capsys):
    text = write_toy_text(tmp_path / "text")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "corpus": {"inputs": [str(text)]}}))
    assert (
        main(["find-rate", str(recipe), *TINY, "--json", "--steps", "24", "--low", "1e-4", "--high", "10"])
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "run/find-rate/find-rate.json").read_text())
    assert shown["suggested"] == saved["suggested"] == pytest.approx(saved["lowest"] / 10)
    assert len(saved["rates"]) == len(saved["losses"]) == len(saved["smoothed"]) >= 10
    assert min(saved["smoothed"]) < saved["smoothed"][0]
    assert (tmp_path / "run/find-rate/find-rate.html").read_text().startswith("<!doctype html>")
    for stage in ("pretrain", "model", "validation", "summary.json", "recipe.yaml"):
        assert not (tmp_path / "run" / stage).exists()
    again = (tmp_path / "run/find-rate/find-rate.json").read_bytes()
    assert (
        main(["find-rate", str(recipe), *TINY, "--json", "--steps", "24", "--low", "1e-4", "--high", "10"])
        == 0
    )
    assert (tmp_path / "run/find-rate/find-rate.json").read_bytes() == again
