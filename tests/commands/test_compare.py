"""A comparison as a user runs it: arms trained and judged, published as they finish, stopped, killed, continued, shared."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

import seedbed
from seedbed.cli import main
from seedbed.compare import equal_minutes
from tiny_runs import tiny_sections, write_sentences


def write(tmp_path, *, seeds=2, tokens=512, arms=None, **more):
    text = write_sentences(tmp_path / "text")
    recipe = tiny_sections()
    recipe.setdefault("corpus", {})["inputs"] = [str(text)]
    data = {
        "out": str(tmp_path / "out"),
        "recipe": recipe,
        "arms": arms
        or {"masked": {}, "high": {"objective.mask_rate": 0.4}, "causal": {"objective.name": "causal_lm"}},
        "cost": {"tokens": tokens},
        "seeds": seeds,
        "judge": {"pairs_per_paradigm": 2, "pll_tokens": 50, "text_mib": 0.01},
        **more,
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def environment():
    paths = [str(Path(seedbed.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def outcome(tmp_path):
    return json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))


def results_of(told):
    """What must not depend on stops, workers or the clock."""
    timed = (
        "step_seconds",
        "train_seconds",
        "tokens_per_second",
        "judge_seconds",
        "product_gflops",
        "peak_memory_bytes",
    )
    return {(r["arm"], r["seed"]): {k: v for k, v in r.items() if k not in timed} for r in told["results"]}


def test_three_arms_two_seeds(tmp_path, capsys, monkeypatch):
    path = write(tmp_path)
    assert main(["compare", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == outcome(tmp_path)
    assert len(told["results"]) == 6
    assert not told["missing"]
    by_key = {m["key"]: m for m in told["measures"]}
    pairs = {"minimal_pairs", "minimal_pairs:one_length", "minimal_pairs:per_token"}
    assert set(by_key) == {"likelihood:masked", *pairs}
    assert set(by_key["likelihood:masked"]["arms"]) == {"masked", "high"}
    # The arms are of two kinds, and this small vocabulary makes many pairs of two lengths.
    assert told["verdict"]["by"] == "minimal_pairs:one_length"
    causal = next(r for r in told["results"] if r["arm"] == "causal")
    assert causal["kind"] == "causal"
    assert causal["tokens"] == 512
    assert 0 < causal["likelihood"] < 10
    assert len(causal["minimal_pairs"]["points"]) == 48
    assert causal["flops"] > next(r for r in told["results"] if r["arm"] == "masked")["flops"] > 0
    assert main(["compare", str(path), "--report"]) == 0
    short = capsys.readouterr()
    assert all(arm in short.err for arm in ("masked", "high", "causal"))
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "What to take" in page
    assert "src=" not in page
    assert page.count("<svg") >= 4
    for name in ("measure", "frontier-time"):
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")
    # Nothing is done twice: an arm added tomorrow is all that is trained.
    more = yaml.safe_load(path.read_text(encoding="utf-8"))
    more["arms"]["low"] = {"objective.mask_rate": 0.05}
    path.write_text(yaml.safe_dump(more), encoding="utf-8")
    before = results_of(told)
    assert main(["compare", str(path), "--json"]) == 0
    again = results_of(json.loads(capsys.readouterr().out))
    assert {k: again[k] for k in before} == before
    assert set(again) - set(before) == {("low", 0), ("low", 1)}
    trained = sorted(p.name for p in (tmp_path / "out" / "arms").iterdir())
    assert len(trained) == 8
    assert len(list((tmp_path / "out" / "stores").iterdir())) == 1


def test_results_of_another_machine_are_taken_over(tmp_path, capsys):
    """What is published of an experiment is enough to go on with it: nothing of it is trained again."""
    arms = {"masked": {}, "causal": {"objective.name": "causal_lm"}}
    path = write(tmp_path, seeds=1, arms=arms)
    assert main(["compare", str(path), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    published = tmp_path / "published.json"
    (tmp_path / "out" / "compare.json").rename(published)
    elsewhere = f"out={tmp_path / 'elsewhere'}"
    words = ["compare", str(path), elsewhere, "--import", str(published)]
    assert main([*words, "--report", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["results"] == first["results"]
    assert again["measures"] == first["measures"]
    assert not again["missing"]
    # An arm more, and one of other settings: these are trained, the other is not.
    more = yaml.safe_load(path.read_text(encoding="utf-8"))
    more["arms"] = {"masked": {}, "causal": {"objective.name": "causal_lm", "training.batch_tokens": 64}}
    path.write_text(yaml.safe_dump(more), encoding="utf-8")
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert "0 of 2 results taken over, 1 were there" in told.err
    assert "left out: causal, seed 0: other settings" in told.err
    assert [p.name[:8] for p in (tmp_path / "elsewhere" / "arms").iterdir()] == ["causal-0"]
    kept = [r for r in first["results"] if r["arm"] == "masked"]
    assert [r for r in json.loads(told.out)["results"] if r["arm"] == "masked"] == kept


@pytest.mark.parametrize("text", ["{", "[]", '{"results": [{"arm": "masked"}]}', '{"results": 3}'])
def test_what_is_no_outcome_is_not_taken_over(tmp_path, capsys, text):
    (tmp_path / "wrong.json").write_text(text, encoding="utf-8")
    assert main(["compare", str(write(tmp_path)), "--import", str(tmp_path / "wrong.json"), "--report"]) == 3
    assert "wrong.json is not the outcome of a comparison" in capsys.readouterr().err
    assert main(["compare", str(write(tmp_path)), "--import", str(tmp_path / "none.json"), "--report"]) == 3
    assert "none.json cannot be read" in capsys.readouterr().err


def test_judged_by_more_an_arm_is_not_trained_again(tmp_path, capsys):
    path = write(tmp_path, seeds=1, arms={"masked": {}, "causal": {"objective.name": "causal_lm"}})
    assert main(["compare", str(path), "--json"]) == 0
    before = {r["arm"]: r for r in json.loads(capsys.readouterr().out)["results"]}
    metrics = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "arms").glob("*/pretrain/metrics.jsonl")}
    assert len(metrics) == 2
    assert main(["compare", str(path), "judge.tasks=[books-en]", "judge.max_examples=40", "--json"]) == 0
    after = {r["arm"]: r for r in json.loads(capsys.readouterr().out)["results"]}
    assert {
        p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "arms").glob("*/pretrain/metrics.jsonl")
    } == metrics
    for arm, result in after.items():
        assert 0.0 <= result["probes"]["books-en"]["score"] <= 1.0
        assert not before[arm]["probes"]
        for kept in (
            "valid",
            "likelihood",
            "minimal_pairs",
            "peak_memory_bytes",
            "product_gflops",
            "train_seconds",
        ):
            assert result[kept] == before[arm][kept]


def test_killed_stopped_and_shared_it_comes_to_the_same(tmp_path, capsys):
    """Kill one worker, stop another, let two finish together; the results are those of one that was left alone."""
    two = {"masked": {}, "causal": {"objective.name": "causal_lm"}}
    path = write(tmp_path, tokens=40_960, arms=two, seeds=1)
    words = [sys.executable, "-m", "seedbed", "compare", str(path)]

    def start(*more):
        return subprocess.Popen(
            [*words, *more], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def lines():
        logs = (tmp_path / "out" / "arms").glob("*/pretrain/metrics.jsonl")
        return sum(log.read_text().count("\n") for log in logs)

    def wait_until(is_so):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if is_so():
                return
            time.sleep(0.05)
        raise AssertionError("it did not happen")

    killed = start()
    wait_until(lambda: lines() > 20)
    killed.kill()
    killed.communicate()

    def is_still():
        before = lines()
        time.sleep(1.5)
        return lines() == before

    wait_until(is_still)  # the run it left behind notices, finishes its step and saves
    before = lines()
    assert before < 600, "it was killed on the way"
    stopped = start()
    wait_until(lambda: lines() > before + 20)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 143, said
    assert "to go on, give the same command" in said
    workers = [start(), start()]
    for w in workers:
        _, said = w.communicate(timeout=300)
        assert w.returncode == 0, said
    shared = results_of(outcome(tmp_path))
    assert main(["compare", str(path), f"out={tmp_path / 'alone'}", "--json"]) == 0
    assert results_of(json.loads(capsys.readouterr().out)) == shared


def test_an_arm_that_cannot_run_stops_no_other(tmp_path, capfd):
    arms = {"masked": {}, "long": {"data.row_length": 4096}}
    path = write(tmp_path, arms=arms, seeds=1)
    assert main(["compare", str(path)]) == 3
    printed = capfd.readouterr()
    assert "failed: long, seed 0: error:" in printed.err
    assert [r["arm"] for r in outcome(tmp_path)["results"]] == ["masked"]


def test_what_an_arm_cannot_be_asked_is_said_on_the_page(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"sentence_good": "the cat sings", "sentence_bad": "the cat cat"}\nno pair\n', encoding="utf-8"
    )
    arms = {"masked": {}, "t5": {"objective.name": "span_corruption"}}
    judge = {"pll_tokens": 50, "text_mib": 0.01, "minimal_pairs": [str(tmp_path / "pairs.jsonl")]}
    judge |= {"tasks": ["books-en"], "max_examples": 40}
    assert main(["compare", str(write(tmp_path, arms=arms, seeds=1, judge=judge))]) == 0
    found = {r["arm"]: r for r in outcome(tmp_path)["results"]}
    assert found["masked"]["minimal_pairs"]["rejected_lines"] == 1
    assert found["t5"]["minimal_pairs"]["method"] == "infill_span"
    assert "books-en" not in found["t5"]["probes"]
    why = found["t5"]["not_asked"]["books-en, probe"]
    assert "encoder-decoder" in why
    assert why in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")


def test_mistakes_are_named_before_anything_is_trained(tmp_path, capsys):
    path = write(tmp_path, arms={"masked": {}, "wrong": {"objective.mask_rat": 0.4}})
    assert main(["compare", str(path)]) == 2
    said = capsys.readouterr().err
    assert "arm wrong" in said
    assert "mask_rate" in said
    assert main(["compare", str(write(tmp_path, arms={"one": {}}))]) == 2
    assert "two or more" in capsys.readouterr().err
    assert main(["compare", str(write(tmp_path)), "--only", "causl"]) == 2
    assert "causl" in capsys.readouterr().err
    assert not (tmp_path / "out" / "arms").exists()


def test_equal_operations_give_cheaper_arms_more_steps(tmp_path, capsys):
    arms = {"masked": {}, "wide": {"model.hidden_size": 256}}
    path = write(tmp_path, arms=arms, seeds=1, cost={"flops": 2e9})
    assert main(["compare", str(path), "--json"]) == 0
    found = {r["arm"]: r for r in json.loads(capsys.readouterr().out)["results"]}
    assert found["masked"]["steps"] > found["wide"]["steps"]
    for result in found.values():
        per_step = result["flops"] / result["steps"]
        assert abs(result["flops"] - 2e9) <= per_step


def test_arms_of_a_machine_that_changed_its_speed_are_left_out(tmp_path):
    from seedbed.compare.config import CompareConfig
    from seedbed.compare.page import outcome_of, overview
    from seedbed.config import validate

    three = {"arms": {"a": {}, "b": {}, "c": {}}, "seeds": 3}
    config = validate(CompareConfig, {**three, "cost": {"minutes": 1}}, place="test")
    base = {
        "kind": "masked",
        "likelihood_unit": "nats",
        "train_seconds": 60.0,
        "tokens": 1,
        "tokens_per_second": 1.0,
        "peak_memory_bytes": 1,
        "flops": 1.0,
        "curve": [],
        "machine": {},
        "objective": "masked_lm",
    }
    results = {
        (arm, seed): base
        | {
            "arm": arm,
            "seed": seed,
            "likelihood": 4.0 + 0.1 * seed + 0.01 * "abc".index(arm),
            "product_gflops": [100.0, 70.0 if (arm, seed) == ("c", 1) else 101.0],
            # Arms differ in what they read in the time; seeds of one arm should not.
            "tokens": (4_000 if arm == "a" else 3_000) * (0.85 if (arm, seed) == ("b", 2) else 1),
        }
        for arm in "abc"
        for seed in (0, 1, 2)
    }
    told = outcome_of(config, results)
    assert told["drifted"] == ["b/2", "c/1"]
    said = " ".join(told["verdict"]["sentences"])
    assert re.search(r"moved by more than 10%.*b \(seed 2\), c \(seed 1\)", said)
    _, rows = overview(told)
    assert {row[0]: row[1] for row in rows} == {"a": "3", "b": "2", "c": "2"}, "seeds that count"
    tokens = validate(CompareConfig, {**three, "cost": {"tokens": 1}}, place="test")
    assert outcome_of(tokens, results)["drifted"] == []


def test_at_equal_minutes_the_seeds_of_an_arm_read_what_the_first_one_measured(tmp_path, capfd):
    arms = {"masked": {}, "causal": {"objective": {"name": "causal_lm"}}}
    # Two seconds of a shared machine are no measurement: any drift is allowed here.
    path = write(tmp_path, arms=arms, seeds=2, cost={"minutes": 0.03, "max_drift": 100.0})
    assert main(["compare", str(path), "--only", "masked"]) == 0
    assert "as seed 0 read in 0.03 minutes" in capfd.readouterr().err
    first, second = sorted(outcome(tmp_path)["results"], key=lambda r: r["seed"])
    assert (first["tokens_from"], second["tokens_from"]) == (None, 0)
    assert first["tokens"] == second["tokens"]
    assert first["valid"]["loss"] != second["valid"]["loss"]
    assert outcome(tmp_path)["drifted"] == []


def test_what_the_machine_was_too_slow_for_is_trained_again_and_nothing_else(tmp_path, monkeypatch, capfd):
    path = write(tmp_path, seeds=1)
    assert main(["compare", str(path)]) == 0
    before = outcome(tmp_path)
    assert main(["compare", str(path), "--again"]) == 0
    assert "none is trained again" in capfd.readouterr().err
    assert outcome(tmp_path)["results"] == before["results"]

    verdicts: list[list[tuple[str, int]]] = []
    monkeypatch.setattr(
        equal_minutes, "usable", lambda config, results: (dict(results), verdicts.pop() if verdicts else [])
    )
    verdicts.append([("high", 0)])  # of the next question only
    assert main(["compare", str(path), "--again", "--only", "masked"]) == 0
    assert "none is trained again" in capfd.readouterr().err
    verdicts.append([("high", 0)])
    assert main(["compare", str(path), "--again"]) == 0
    assert "trained again: high (seed 0)" in capfd.readouterr().err
    after = outcome(tmp_path)
    assert results_of(after) == results_of(before), "the same run"
    again = {r["arm"]: r for r in after["results"]}
    kept = {r["arm"]: r for r in before["results"]}
    assert again["masked"] == kept["masked"]
    assert again["causal"] == kept["causal"]
    assert again["high"] != kept["high"], "measured anew"
    aside = [p.name for p in (tmp_path / "out" / "arms").iterdir() if p.name.endswith(".aside-1")]
    assert len(aside) == 1
    assert aside[0].startswith("high-0-")


@pytest.mark.parametrize("words", [["compare", "--print"], ["compare", "--help"]])
def test_it_explains_itself(words, capsys):
    assert main(words) == 0
    assert "arms" in capsys.readouterr().out
