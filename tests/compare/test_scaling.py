"""Forecasts of planted curves: near the truth, with intervals that hold it as often as they say, and widen when they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedbed.compare.scaling import Probe, effective_tokens, fit_curve
from seedbed.errors import DataError


def loss(parameters, tokens, *, floor=2.0, a=0.3, b=0.35):
    return floor + 0.5 * (parameters / 1e6) ** -a + 2.0 * (tokens / 1e6) ** -b


def probes(draw, *, noise=0.01, sizes=(1e6, 4e6), lengths=(0.5e6, 1e6, 2e6, 4e6), **curve):
    return [Probe(n, d, loss(n, d, **curve) + noise * draw.normal()) for n in sizes for d in lengths]


def test_four_times_the_largest_probe_lies_in_the_interval_nine_times_of_ten():
    draw = np.random.default_rng(0)
    held, widths = 0, []
    for _ in range(120):
        curve = {"floor": draw.uniform(1.0, 3.0), "a": draw.uniform(0.1, 0.5), "b": draw.uniform(0.15, 0.8)}
        found = fit_curve(probes(draw, **curve)).forecast(4e6, 16e6)
        truth = loss(4e6, 16e6, **curve) + 0.01 * draw.normal()
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert held / 120 >= 0.83
    assert float(np.median(widths)) < 0.3


def test_without_noise_the_forecast_is_the_truth():
    found = fit_curve(probes(np.random.default_rng(1), noise=0.0)).forecast(4e6, 16e6)
    assert found.loss == pytest.approx(loss(4e6, 16e6), abs=0.03)


def test_a_straight_line_over_the_logarithm_is_forecast():
    """Small models that have just left the plateau fall like this over a tenfold length, as if there were no floor."""
    draw = np.random.default_rng(8)
    held, errors = 0, []
    for _ in range(100):
        line = [
            (d, 4.8 - 0.8 * math.log(d / 3.4e6) + 0.02 * draw.normal())
            for d in (1.2e6, 1.7e6, 2.4e6, 3.4e6, 12e6)
        ]
        found = fit_curve([Probe(2e6, d, y) for d, y in line[:-1]]).forecast(2e6, 12e6)
        held += found.low <= line[-1][1] <= found.high
        errors.append(found.loss - line[-1][1])
    assert held >= 90
    assert abs(float(np.median(errors))) < 0.1


def bent(tokens, *, slope, exponent, bend=5.45, at=2e6):
    """Fall along a straight line down to the bend, and as a power of the tokens from there on."""
    x = math.log(tokens / at)
    return bend - slope * (x if x < 0 else (1.0 - math.exp(-exponent * x)) / exponent)


@pytest.mark.parametrize("last", [1e6, 2e6, 16e6], ids=["above the bend", "at it", "all past it"])
def test_a_curve_that_bends_is_held(last):
    draw = np.random.default_rng(9)
    held, widths, straight = 0, [], 0
    for _ in range(100):
        truth = {"slope": draw.uniform(0.5, 0.65), "exponent": draw.normal(0.45, 0.2)}
        planted = [
            Probe(2e6, d, bent(d, **truth) + 0.01 * draw.normal())
            for d in (last / 8, last / 4, last / 2, last)
            for _ in range(3)
        ]
        if last > 2e6:
            planted = [p for p in planted if p.tokens > 2e6]
        outcome = bent(4 * last, **truth) + 0.01 * draw.normal()
        found = fit_curve(planted, bend=5.45).forecast(2e6, 4 * last)
        held += found.low <= outcome <= found.high
        widths.append(found.high - found.low)
        blind = fit_curve(planted).forecast(2e6, 4 * last)
        straight += blind.low <= outcome <= blind.high
    assert held >= 84
    assert float(np.median(widths)) < 0.35
    assert straight < held or last > 2e6


def test_probes_past_the_bend_are_fitted_alone_where_they_are_enough():
    lengths = (0.5e6, 1e6, 4e6, 8e6, 16e6)
    probes = [Probe(2e6, d, bent(d, slope=0.6, exponent=0.4)) for d in lengths for _ in range(2)]
    curve = fit_curve(probes, bend=5.45)
    assert {p.tokens for p in curve.used} == {4e6, 8e6, 16e6}
    assert curve.bend is None
    assert curve.forecast(2e6, 64e6).loss == pytest.approx(bent(64e6, slope=0.6, exponent=0.4), abs=0.1)
    few = fit_curve(probes[:6], bend=5.45)
    assert few.bend == 5.45
    assert len(few.used) == 6


def test_a_bend_that_is_not_reached_changes_nothing():
    draw = np.random.default_rng(10)
    planted = [
        Probe(2e6, d, 6.0 - 0.5 * math.log(d / 1e6) + 0.01 * draw.normal()) for d in (2e5, 4e5, 8e5, 1e6)
    ]
    assert fit_curve(planted, bend=1.0).forecast(2e6, 4e6) == fit_curve(planted).forecast(2e6, 4e6)


def test_the_lowest_of_the_plateau_are_taken_where_too_few_left_it():
    found = fit_curve(
        [Probe(2e6, d, 4.8 - 0.8 * math.log(d / 3.4e6), 5.4) for d in (3e5, 6e5, 1.2e6, 2.4e6, 3.4e6)]
    )
    assert [p.tokens for p in found.left_out] == [3e5]
    assert [p.loss < p.bigram for p in found.used] == [False, False, True, True]


def test_probes_on_the_plateau_spoil_no_forecast():
    """Runs too short to leave the plateau end near it, far below the curve of those that left it."""
    left = probes(np.random.default_rng(6), noise=0.005)
    stuck = [Probe(n, d, 5.8) for n in (1e6, 4e6) for d in (1e5, 2e5)]
    truth = loss(4e6, 16e6)
    blind = fit_curve([*left, *stuck]).forecast(4e6, 16e6)
    seeing = fit_curve([Probe(p.parameters, p.tokens, p.loss, 5.5) for p in (*left, *stuck)])
    found = seeing.forecast(4e6, 16e6)
    assert found.low <= truth <= found.high
    assert abs(found.loss - truth) < 0.05 < abs(blind.loss - truth)
    assert found.high - found.low < blind.high - blind.low
    assert {p.tokens for p in seeing.left_out} == {1e5, 2e5}
    few = [Probe(1e6, d, 5.8, 5.5) for d in (1e5, 2e5)] + [
        Probe(1e6, d, loss(1e6, d), 5.5) for d in (1e6, 4e6)
    ]
    assert not fit_curve(few).left_out, "too few would remain"
    assert len(fit_curve(few).used) == 4
    assert set(seeing.used) | set(seeing.left_out) == {
        Probe(p.parameters, p.tokens, p.loss, 5.5) for p in (*left, *stuck)
    }


def test_further_away_is_less_sure_and_so_is_noisier():
    draw = np.random.default_rng(2)
    clean = fit_curve(probes(draw, noise=0.005))
    widths = [(f := clean.forecast(4e6, d)).high - f.low for d in (4e6, 16e6, 256e6)]
    assert widths == sorted(widths)
    noisy = fit_curve(probes(np.random.default_rng(2), noise=0.05)).forecast(4e6, 16e6)
    assert noisy.high - noisy.low > widths[1]


def test_one_size_needs_no_term_for_it():
    curve = fit_curve(probes(np.random.default_rng(3), sizes=(2e6,)))
    assert curve.forecast(2e6, 16e6).loss == pytest.approx(loss(2e6, 16e6), abs=0.1)
    assert curve.terms.shape[1] == 2


def test_repeats_are_worth_less_and_less():
    assert effective_tokens(5e5, 1e6, 15.0) == 5e5
    assert effective_tokens(5e5, None, 15.0) == 5e5
    few, many = effective_tokens(4e6, 1e6, 15.0), effective_tokens(1e9, 1e6, 15.0)
    assert 0.9 * 4e6 < few < 4e6
    assert many == pytest.approx(16e6, rel=1e-3)
    assert effective_tokens(4e6, 1e6, 150.0) > few
    ours = fit_curve(probes(np.random.default_rng(4), noise=0.0), unique=2e6, reuse=15.0)
    assert ours.forecast(4e6, 64e6).loss > loss(4e6, 64e6)
    assert math.isfinite(ours.forecast(4e6, 1e12).loss)


def test_the_same_probes_give_the_same_forecast():
    found = [fit_curve(probes(np.random.default_rng(5))).forecast(4e6, 16e6) for _ in range(2)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [Probe(1e6, d, 5.0) for d in (1e6, 1e6, 2e6, 2e6)],
        [Probe(1e6, d, 5.0 + d / 1e6) for d in (1e6, 2e6, 4e6, 8e6)],
    ],
    ids=["none", "two lengths", "rising"],
)
def test_what_says_nothing_is_refused(given):
    with pytest.raises(DataError):
        fit_curve(given)
