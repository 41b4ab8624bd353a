"""What a comparison says of arms whose truth is planted: who is named, who is not, and in which words."""

from __future__ import annotations

import numpy as np
import pytest

from seedbed.compare.verdict import frontier, judge, measures_of


def result(value, *, kind="masked", pairs=None, points=None, seconds=60.0, probes=None):
    return {
        "kind": kind,
        "likelihood": value,
        "likelihood_unit": "loss at hidden tokens, nats" if kind == "masked" else "bits per byte",
        "minimal_pairs": None if pairs is None else {"accuracy": pairs, "points": points or ""},
        "train_seconds": seconds,
        "peak_memory_bytes": 1 << 30,
        "probes": probes or {},
        "finetunes": {},
    }


def planted(gaps, *, seeds=3, noise=0.01, draw=None, **more):
    draw = draw or np.random.default_rng(0)
    luck = 0.1 * draw.normal(size=seeds)
    return {
        (arm, seed): result(4.0 + gap + luck[seed] + noise * draw.normal(), **more)
        for arm, gap in gaps.items()
        for seed in range(seeds)
    }


def test_an_arm_made_worse_is_named_and_the_cheaper_of_equals_is_advised():
    results = planted({"good": 0.0, "twin": 0.0, "bad": 0.2})
    results = {k: {**r, "train_seconds": 30.0 if k[0] == "twin" else 60.0} for k, r in results.items()}
    verdict = judge(results)
    assert verdict.measure.key == "likelihood:masked"
    assert list(verdict.worse) == ["bad"]
    assert set(verdict.best) == {"good", "twin"}
    assert verdict.advised == "twin"
    said = " ".join(verdict.sentences)
    assert "Found worse: bad." in said
    assert "3 seeds" in said


def test_a_price_that_hardly_differs_decides_nothing():
    results = planted({"good": 0.0, "twin": 0.001}, noise=0.02)
    results = {k: {**r, "train_seconds": 58.0 if k[0] == "twin" else 60.0} for k, r in results.items()}
    verdict = judge(results)
    assert set(verdict.best) == {"good", "twin"}
    assert verdict.advised == verdict.ranking[0]
    assert "none of them costs a tenth less" in " ".join(verdict.sentences)


def test_at_equal_minutes_memory_is_told_and_decides_nothing():
    results = planted({"good": 0.0, "twin": 0.001}, noise=0.02)
    first = judge(results, cost="minutes").ranking[0]
    results = {k: {**r, "peak_memory_bytes": 2**31 if k[0] == first else 2**30} for k, r in results.items()}
    verdict = judge(results, cost="minutes")
    assert verdict.advised == first
    assert "needs 1.00 GiB to train instead of 2.00" in " ".join(verdict.sentences)


def test_of_equal_arms_none_is_named_more_often_than_said():
    """1,000 comparisons through the whole of it: no arm differs, and one in twenty may be called worse."""
    draw = np.random.default_rng(11)
    alarms = sum(bool(judge(planted(dict.fromkeys("abc", 0.0), draw=draw)).worse) for _ in range(1000))
    # Only differences from the best arm count here, which is fewer than all pairs: at most the nominal 5 %, not far below.
    assert 30 <= alarms <= 70, alarms


def test_a_small_gap_is_found_with_the_seeds_it_says_it_needs():
    gaps = {"a": 0.0, "b": 0.03}
    said = " ".join(judge(planted(gaps, noise=0.02, draw=np.random.default_rng(3))).sentences)
    assert "seeds would show it four times out of five" in said
    sure = judge(planted(gaps, seeds=12, noise=0.02))
    assert list(sure.worse) == ["b"]


def test_one_seed_is_judged_by_items_and_says_so():
    draw = np.random.default_rng(1)
    ease = draw.uniform(0.3, 0.95, size=600)
    letters = {
        arm: "".join("01"[int(draw.uniform() < e + gain)] for e in ease)
        for arm, gain in (("a", 0.0), ("b", 0.15))
    }
    results = {
        (arm, 0): result(None, kind="none", pairs=sum(p == "1" for p in points) / 600, points=points)
        for arm, points in letters.items()
    }
    verdict = judge(results)
    assert verdict.measure.key == "minimal_pairs"
    assert (verdict.over, list(verdict.worse)) == ("items", ["a"])
    assert "another seed may say something else" in " ".join(verdict.sentences)


def told_of_pairs(points, longer, per_token):
    worth = {"1": 1.0, "h": 0.5, "0": 0.0}

    def share(signs):
        return sum(worth[sign] for sign in signs) / len(signs)

    return {
        "accuracy": share(points),
        "per_token": share(per_token),
        "points": points,
        "points_per_token": per_token,
        "longer": longer,
    }


def test_pairs_of_one_length_decide_where_sums_say_only_which_is_shorter():
    """One arm is right wherever the acceptable sentence is the shorter one, the other knows something."""
    longer = "=" * 40 + "-" * 40 + "x" * 20
    results = {}
    for seed in range(3):
        blind = told_of_pairs("10" * 20 + "1" * 40 + "h" * 20, longer, "0" * 100)
        knows = told_of_pairs("1" * (30 + seed) + "0" * (10 - seed) + "0" * 40 + "h" * 20, longer, "1" * 100)
        results["blind", seed] = result(None, kind="none") | {"minimal_pairs": blind}
        results["knows", seed] = result(None, kind="none") | {"minimal_pairs": knows}
    keys = [m.key for m in measures_of(results)]
    assert keys == ["minimal_pairs:one_length", "minimal_pairs", "minimal_pairs:per_token"]
    means = {m.key: m.means() for m in measures_of(results)}
    assert means["minimal_pairs:one_length"] == pytest.approx({"knows": 31 / 40, "blind": 0.5})
    assert list(means["minimal_pairs"]) == ["blind", "knows"]
    assert list(means["minimal_pairs:per_token"]) == ["knows", "blind"]
    for by in ("auto", "minimal_pairs"):
        verdict = judge(results, by=by)
        assert verdict.measure.key == "minimal_pairs:one_length"
        assert "of one length right (40 of 100)" in verdict.measure.label
        assert verdict.ranking == ["knows", "blind"]
    alone = {key: value for key, value in results.items() if key[1] == 0}
    assert judge(alone).differences.blocks == 40, "one seed: the items are those pairs"


def test_pairs_of_one_length_are_told_as_ever():
    few = "=" * 95 + "+" * 5
    results = {
        (arm, 0): result(None, kind="none") | {"minimal_pairs": told_of_pairs(points * 50, few, "1" * 100)}
        for arm, points in (("a", "10"), ("b", "11"))
    }
    assert [m.key for m in measures_of(results)] == ["minimal_pairs"]
    old = {key: r | {"minimal_pairs": {"accuracy": 0.5, "points": "10"}} for key, r in results.items()}
    assert [m.key for m in measures_of({**results, ("a", 0): old["a", 0]})] == ["minimal_pairs"]


def test_a_run_that_is_missing_costs_no_other():
    results = planted({"good": 0.0, "twin": 0.0, "bad": 0.2})
    del results["twin", 1]
    verdict = judge(results)
    assert list(verdict.worse) == ["bad"]
    said = " ".join(verdict.sentences)
    assert "3 seeds (1 run is not there, and allowed for)" in said


def test_one_seed_and_no_items_says_that_nothing_can_be_said():
    verdict = judge(planted({"a": 0.0, "b": 0.5}, seeds=1))
    assert verdict.ranking == ["a", "b"]
    assert verdict.advised is None
    assert "nothing can be said about chance" in " ".join(verdict.sentences)
    assert judge({}).sentences == ["Fewer than two arms are finished that can be compared."]


def test_likelihoods_never_cross_kinds():
    results = planted({"masked": 0.0}, pairs=0.6) | {
        ("causal", seed): result(1.5, kind="causal", pairs=0.7 + 0.001 * seed) for seed in range(3)
    }
    keys = [m.key for m in measures_of(results)]
    assert keys == ["minimal_pairs"], "one arm a kind: nothing to compare a likelihood with"
    assert judge(results).ranking == ["causal", "masked"]
    alike = {k: r | {"kind": "masked"} for k, r in results.items()}
    assert "likelihood:masked" in [m.key for m in measures_of(alike)]


def test_tasks_count_in_their_mean():
    def probes(a, b):
        return {"sst2": {"score": a, "metric": "accuracy"}, "cola": {"score": b, "metric": "matthews"}}

    results = {
        (arm, seed): result(None, kind="none", probes=probes(0.7 + gain, 0.1 + gain + 0.001 * seed))
        for arm, gain in (("a", 0.0), ("b", 0.05))
        for seed in range(3)
    }
    by_key = {m.key: m for m in measures_of(results)}
    assert set(by_key) == {"probe:sst2", "probe:cola", "probes"}
    assert by_key["probes"].means()["b"] == pytest.approx((0.75 + 0.151) / 2)
    assert judge(results, by="probes").measure.key == "probes"


def test_the_frontier_is_what_nothing_cheaper_beats():
    points = {"a": (1.0, 0.5), "b": (2.0, 0.4), "c": (3.0, 0.7), "d": (1.0, 0.6)}
    assert frontier(points, is_higher_better=True) == ["d", "c"]
    assert frontier(points, is_higher_better=False) == ["a", "b"]
