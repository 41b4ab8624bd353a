"""Equal minutes: which runs count, and whose tokens the later seeds of an arm read."""

from __future__ import annotations

from seedbed.compare.config import CompareConfig
from seedbed.compare.equal_minutes import measured_run, usable
from seedbed.config import validate

CONFIG = validate(
    CompareConfig, {"arms": {"a": {}, "b": {}}, "seeds": 3, "cost": {"minutes": 2}}, place="test"
)


def result(*, tokens=1000, speed=100.0, seconds=120.0, tokens_from=None):
    return {
        "tokens": tokens,
        "tokens_from": tokens_from,
        "product_gflops": [speed, speed],
        "train_seconds": seconds,
    }


def test_a_seed_that_reads_what_another_measured_counts_however_fast_its_machine_was():
    results = {
        ("a", 0): result(),
        ("b", 0): result(tokens=700),
        ("a", 1): result(speed=50.0, seconds=240.0, tokens_from=0),
        ("b", 1): result(tokens=700, speed=300.0, tokens_from=0),
    }
    kept, drifted = usable(CONFIG, results)
    assert set(kept) == set(results)
    assert not drifted
    alone = {key: {**r, "tokens_from": None} for key, r in results.items()}
    assert set(usable(CONFIG, alone)[1]) == {("a", 1), ("b", 1)}


def test_it_falls_with_the_run_that_measured():
    results = {
        ("a", 0): result(),
        ("b", 0): result(speed=70.0, tokens=500),
        ("c", 0): result(speed=101.0),
        ("a", 1): result(tokens_from=0),
        ("b", 1): result(tokens=500, tokens_from=0),
        ("c", 1): result(tokens=999, tokens_from=0),
    }
    assert set(usable(CONFIG, results)[1]) == {("b", 0), ("b", 1), ("c", 1)}
    del results["a", 0]
    assert ("a", 1) in usable(CONFIG, results)[1], "what measured it is gone"


def test_tokens_are_those_of_the_first_run_that_took_its_time():
    results = {
        ("a", 0): result(seconds=150.0),
        ("a", 1): result(tokens=1010, seconds=121.0),
        ("a", 2): result(tokens=1010, tokens_from=1),
    }
    assert measured_run(CONFIG, results, "a") is results["a", 1]
    assert measured_run(CONFIG, results, "b") is None
    slow = {**results, ("a", 1): result(tokens=1010, speed=50.0), ("b", 0): result(), ("b", 1): result()}
    assert measured_run(CONFIG, slow, "a") is None
    tokens = validate(CompareConfig, {"arms": {"a": {}, "b": {}}, "cost": {"tokens": 5}}, place="test")
    assert measured_run(tokens, results, "a") is None


def test_results_of_before_have_no_such_key():
    results = {("a", seed): result() for seed in range(3)}
    for own in results.values():
        del own["tokens_from"]
    assert usable(CONFIG, results)[1] == []
    assert measured_run(CONFIG, results, "a") is results["a", 0]
