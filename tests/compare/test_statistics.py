"""Differences among arms: exact against textbook tests, honest where nothing differs, sharp where something does."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from seedbed.compare.statistics import adjusted_means, compare_blocks, letters, needed_blocks, spread_interval


def scores_of(table, names="abcdefgh"):
    return {name: dict(enumerate(map(float, row))) for name, row in zip(names, table, strict=False)}


def test_two_arms_are_the_paired_t_test():
    draw = np.random.default_rng(0)
    table = draw.normal(size=(2, 6)) + np.array([[0.0], [0.8]])
    found = compare_blocks(scores_of(table))
    expected = stats.ttest_rel(table[0], table[1])
    (contrast,) = found.contrasts
    assert contrast.p == pytest.approx(expected.pvalue, rel=1e-4)
    low, high = expected.confidence_interval(0.95)
    assert (contrast.low, contrast.high) == pytest.approx((low, high), rel=1e-4)
    assert contrast.is_found == (contrast.p < 0.05)


def test_many_arms_without_common_luck_are_tukeys_test():
    """With the effect of blocks taken out of the data, only the degrees of freedom differ from the one-way test."""
    draw = np.random.default_rng(1)
    table = draw.normal(size=(4, 5))
    table -= table.mean(axis=0)
    found = compare_blocks(scores_of(table))
    residual = table - table.mean(axis=1, keepdims=True)
    noise = math.sqrt(float((residual**2).sum()) / 12)
    for contrast in found.contrasts:
        i, j = "abcd".index(contrast.first), "abcd".index(contrast.second)
        ranges = abs(table[i].mean() - table[j].mean()) / (noise / math.sqrt(5))
        assert contrast.p == pytest.approx(float(stats.studentized_range.sf(ranges, 4, 12)), rel=1e-6)


def test_what_a_block_does_to_all_arms_drops_out():
    draw = np.random.default_rng(2)
    table = draw.normal(size=(3, 4), scale=0.01) + np.array([[0.0], [0.1], [0.1]])
    luck = 10 * draw.normal(size=(1, 4))
    plain, lucky = compare_blocks(scores_of(table)), compare_blocks(scores_of(table + luck))
    for a, b in zip(plain.contrasts, lucky.contrasts, strict=True):
        assert a.difference == pytest.approx(b.difference, abs=1e-9)
        assert a.ranges == pytest.approx(b.ranges, rel=1e-6)
    assert lucky.differ("a", "b")
    assert not lucky.differ("b", "c")
    assert lucky.between("b", "a").difference == -lucky.between("a", "b").difference


@pytest.mark.parametrize(("arms", "blocks"), [(2, 3), (4, 3), (8, 3), (5, 200)])
def test_equal_arms_are_found_to_differ_as_often_as_said(arms, blocks):
    """Over 1,000 comparisons of arms that differ by nothing, a nominal 5 % is between 3 and 7 %."""
    draw = np.random.default_rng(arms * 1000 + blocks)
    alarms = 0
    for _ in range(1000):
        luck = draw.normal(size=(1, blocks))
        table = 3.9 + 0.05 * luck + 0.01 * draw.normal(size=(arms, blocks))
        alarms += any(c.is_found for c in compare_blocks(scores_of(table)).contrasts)
    assert 30 <= alarms <= 70, alarms


def noisy_table(draw, *, scale, arms=8, blocks=3):
    """Return equal arms, the first of which scatters `scale` times as much as the others."""
    spread = np.where(np.arange(arms)[:, None] == 0, 0.01 * scale, 0.01)
    return 3.9 + 0.05 * draw.normal(size=(1, blocks)) + spread * draw.normal(size=(arms, blocks))


def test_an_arm_that_scatters_leaves_the_others_as_sharp():
    """One pooled spread hid differences of ten times the noise of the arms they lie between."""
    draw = np.random.default_rng(11)
    found = kept = 0
    for _ in range(200):
        table = noisy_table(draw, scale=100.0)
        table[1] += 0.1
        told = compare_blocks(scores_of(table))
        found += all(told.differ("b", other) for other in "cdefgh")
        kept += set(told.unsteady) == {"a"}
    assert kept > 190
    assert found > 190


def test_an_arm_that_scatters_raises_no_more_alarms():
    """Its own differences are held against its own spread: the level holds where the spreads are nothing alike."""
    draw = np.random.default_rng(12)
    alarms = 0
    for _ in range(1000):
        told = compare_blocks(scores_of(noisy_table(draw, scale=100.0)))
        alarms += any(c.is_found for c in told.contrasts)
    assert 30 <= alarms <= 70, alarms


def test_equal_arms_are_hardly_ever_set_apart():
    draw = np.random.default_rng(13)
    parted = sum(bool(compare_blocks(scores_of(noisy_table(draw, scale=1.0))).unsteady) for _ in range(1000))
    assert parted <= 20, parted


def test_an_arm_that_scatters_is_told_by_welchs_test():
    draw = np.random.default_rng(14)
    table = noisy_table(draw, scale=50.0, blocks=4)
    table -= table[1:].mean(axis=0)  # what a seed does to all arms, which Welch's test knows nothing of
    table[0] += 5.0
    told = compare_blocks(scores_of(table))
    contrast = told.between("a", "b")
    expected = stats.ttest_ind(table[0], table[1], equal_var=False)
    assert contrast.is_found
    # Half of the level is for such an arm; the other's spread is known from all the rest, which changes next to nothing here.
    assert contrast.p == pytest.approx(2 * expected.pvalue, rel=0.1)
    assert told.unsteady["a"] == pytest.approx(table[0].std(ddof=1), rel=0.1)
    reach = told.reaches["a"] + told.reaches["b"]
    assert reach == pytest.approx((contrast.high - contrast.low) / 2)
    assert told.reaches["b"] == pytest.approx(told.reaches["c"])
    assert told.reaches["b"] < told.reaches["a"]


def test_equal_arms_at_items_that_are_right_or_wrong():
    """Items are not normal, and some are easy for every arm; there are many of them."""
    draw = np.random.default_rng(7)
    alarms = 0
    for _ in range(1000):
        ease = draw.uniform(0.2, 0.95, size=(1, 400))
        table = (draw.uniform(size=(3, 400)) < ease).astype(float)
        alarms += any(c.is_found for c in compare_blocks(scores_of(table)).contrasts)
    assert 30 <= alarms <= 70, alarms


def test_the_interval_holds_the_truth_for_all_pairs_at_once():
    draw = np.random.default_rng(3)
    truth = np.array([0.0, 0.02, 0.05])
    held = 0
    for _ in range(500):
        table = truth[:, None] + draw.normal(size=(1, 4)) + 0.03 * draw.normal(size=(3, 4))
        found = compare_blocks(scores_of(table))
        held += all(
            c.low <= truth["abc".index(c.first)] - truth["abc".index(c.second)] <= c.high
            for c in found.contrasts
        )
    assert 0.92 <= held / 500 <= 0.98


def test_arms_that_are_the_same_in_every_block():
    same = {"a": {0: 1.0, 1: 2.0, 2: 4.0}, "b": {0: 1.0, 1: 2.0, 2: 4.0}}
    (contrast,) = compare_blocks(same).contrasts
    assert (contrast.difference, contrast.p, contrast.is_found) == (0.0, 1.0, False)
    apart = {"a": same["a"], "b": {k: v + 0.5 for k, v in same["b"].items()}}
    (contrast,) = compare_blocks(apart).contrasts
    assert (contrast.p, contrast.is_found) == (0.0, True)


def test_only_blocks_all_arms_have_count():
    scores = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {1: 2.5, 2: 3.1}}
    assert compare_blocks(scores).blocks == 2
    assert compare_blocks({"a": {0: 1.0}, "b": {0: 2.0}}) is None
    assert compare_blocks({"a": {0: 1.0, 1: 2.0}}) is None


def holes(draw, table, share):
    """Return a table with scores taken out at random, no arm and no block left without."""
    while True:
        found = np.where(draw.uniform(size=table.shape) < share, math.nan, table)
        has = ~np.isnan(found)
        if has.sum(axis=0).min() > 1 and has.any(axis=1).all():
            return found


def present(table, names="abcdefgh"):
    """Return the scores that are there."""
    return {
        name: {block: float(x) for block, x in enumerate(row) if not math.isnan(x)}
        for name, row in zip(names, table, strict=False)
    }


def test_a_missing_run_costs_no_other_run():
    """Against least squares with dummy variables, solved another way; each pair by Kramer's standard error."""
    draw = np.random.default_rng(21)
    table = holes(draw, draw.normal(size=(5, 4)) + np.arange(5)[:, None] / 3, 0.25)
    at_arm, at_block = np.nonzero(~np.isnan(table))
    scores = table[at_arm, at_block]
    # The first arm and the first block are the base.
    design = np.stack(
        [np.ones(len(scores)), *(at_arm == i for i in range(1, 5)), *(at_block == b for b in range(1, 4))],
        axis=1,
    ).astype(float)
    terms, squares, rank, _ = np.linalg.lstsq(design, scores, rcond=None)
    freedom = len(scores) - rank
    covariance = np.linalg.inv(design.T @ design) * float(squares[0]) / freedom
    found = compare_blocks(present(table))
    assert found.missing == 20 - len(scores) > 0
    for contrast in found.contrasts:
        weights = np.zeros(8)
        for name, sign in ((contrast.first, 1.0), (contrast.second, -1.0)):
            if name != "a":
                weights["abcde".index(name)] = sign
        gap, error = float(weights @ terms), math.sqrt(float(weights @ covariance @ weights))
        assert contrast.difference == pytest.approx(gap)
        expected = stats.studentized_range.sf(abs(gap) / error * math.sqrt(2), 5, freedom)
        assert contrast.p == pytest.approx(float(expected), rel=1e-6)


def test_two_arms_with_holes_are_the_paired_t_test_of_what_both_have():
    scores = {"a": {0: 1.0, 1: 2.0, 2: 3.5, 4: 9.0}, "b": {0: 1.2, 1: 2.9, 2: 4.0, 3: 7.0}}
    found = compare_blocks(scores)
    expected = stats.ttest_rel([1.0, 2.0, 3.5], [1.2, 2.9, 4.0])
    assert found.contrasts[0].p == pytest.approx(expected.pvalue, rel=1e-4)
    assert found.blocks == 3


@pytest.mark.parametrize(("arms", "blocks", "share"), [(4, 3, 0.2), (8, 3, 0.25), (8, 4, 0.4)])
def test_equal_arms_with_runs_missing_are_found_to_differ_as_often_as_said(arms, blocks, share):
    draw = np.random.default_rng(arms * 100 + blocks)
    alarms = said = 0
    while said < 1000:
        table = 3.9 + 0.05 * draw.normal(size=(1, blocks)) + 0.01 * draw.normal(size=(arms, blocks))
        found = compare_blocks(present(holes(draw, table, share)))
        if found is not None:
            said += 1
            alarms += any(c.is_found for c in found.contrasts)
    assert 30 <= alarms <= 70, alarms


def test_an_arm_that_scatters_is_set_apart_though_runs_are_missing():
    draw = np.random.default_rng(22)
    kept = alarms = found = 0
    for _ in range(300):
        table = noisy_table(draw, scale=100.0, blocks=4)
        table[1] += 0.1
        table[draw.integers(1, 8), draw.integers(4)] = math.nan
        table[0, draw.integers(4)] = math.nan
        told = compare_blocks(present(table))
        kept += set(told.unsteady) == {"a"}
        found += all(told.differ("b", other) for other in "cdefgh")
        alarms += any(c.is_found for c in told.contrasts if "b" not in (c.first, c.second))
    assert kept > 285
    assert found > 285
    assert alarms <= 25, alarms


def test_luck_that_an_arm_missed_is_not_held_against_it():
    scores = {"a": {0: 1.0, 1: 5.0}, "b": {0: 1.1, 1: 5.1}, "c": {0: 1.2}, "lost": {9: 3.0}}
    means = adjusted_means(scores)
    assert means == pytest.approx({"a": 3.0, "b": 3.1, "c": 3.2, "lost": 3.0})
    assert set(compare_blocks(scores).means) == {"a", "b", "c"}, "one that shares no seed with the others"


def test_too_few_runs_say_nothing():
    assert compare_blocks({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0}, "c": {0: 2.0}}) is None
    assert compare_blocks({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 2: 1.0}, "c": {1: 2.0, 2: 3.0}}) is not None


def test_seeds_needed_are_those_that_find_it_four_times_of_five():
    need = needed_blocks(0.05, 0.03, 3)
    draw = np.random.default_rng(5)
    shares = []
    for blocks in (need, max(2, need // 2)):
        hits = 0
        for _ in range(400):
            table = np.array([[0.0], [0.05], [0.05]]) + 0.03 * draw.normal(size=(3, blocks))
            hits += compare_blocks(scores_of(table)).differ("a", "b")
        shares.append(hits / 400)
    assert shares[0] > 0.72
    assert shares[1] < shares[0] - 0.1
    assert needed_blocks(0.0, 0.03, 3) == 100


def test_interval_of_one_arm_is_students():
    low, high = spread_interval([1.0, 2.0, 4.0])
    expected = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (low, high) == pytest.approx(expected)
    assert spread_interval([1.0]) is None


def test_two_arms_share_a_letter_exactly_where_they_are_not_told_apart():
    draw = np.random.default_rng(3)
    for arms in range(2, 10):
        names = "abcdefghi"[:arms]
        pairs = list(itertools.combinations(names, 2))
        for share in (0.0, 0.2, 0.5, 0.9, 1.0):
            apart = {pair for pair in pairs if draw.random() < share}
            given = letters(names, apart)
            for first, second in pairs:
                assert bool(set(given[first]) & set(given[second])) == ((first, second) not in apart)


def test_letters_go_from_the_best_down_and_none_is_idle():
    assert letters("wxyz", [("w", "z"), ("w", "y"), ("x", "z")]) == {"w": "a", "x": "ab", "y": "bc", "z": "c"}
    assert letters("wx", []) == {"w": "a", "x": "a"}
    assert letters("wx", [("w", "x")]) == {"w": "a", "x": "b"}
