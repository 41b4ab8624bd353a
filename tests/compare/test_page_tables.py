"""Tables of the page: which arms differ, and losses by slices, where only arms of one kind stand side by side."""

from __future__ import annotations

from seedbed.compare.config import CompareConfig
from seedbed.compare.page import _slices_apart, build_page, outcome_of


def result(arm: str, kind: str, **losses: float) -> dict:
    parts = {name: {"loss": loss, "targets": 10.0} for name, loss in losses.items()}
    return {"arm": arm, "seed": 0, "kind": kind, "slices": {"by kind": parts} if parts else None}


def test_one_table_a_kind_of_what_all_its_arms_have():
    results = [
        result("masked", "masked", words=4.0, numbers=6.0, special=9.0),
        result("short rows", "masked", words=4.5, numbers=8.0),
        result("causal", "causal", words=1.0),
        result("replaced", "none"),
    ]
    ((header, rows, caption),) = _slices_apart({"results": results})
    assert header == ["", "targets", "masked", "short rows"]
    assert [row[0] for row in rows] == ["numbers", "words"], "the widest gap first, no row with a hole"
    assert rows[0][2:] == ["6.000", "8.000"]
    assert caption.startswith("masked: ")


def page_of(likelihoods: dict[str, list[float]]) -> str:
    """Return the page of masked arms with these losses under three seeds."""
    config = CompareConfig(arms={arm: {} for arm in likelihoods}, seeds=3)
    results = {
        (arm, seed): {
            "arm": arm,
            "seed": seed,
            "kind": "masked",
            "objective": "masked_lm",
            "likelihood": loss,
            "likelihood_unit": "nats",
            "train_seconds": 60.0,
            "tokens": 1e6,
            "flops": 1e12,
            "tokens_per_second": 1e4,
            "peak_memory_bytes": 2**30,
            "product_gflops": [100.0],
            "machine": {},
            "curve": [],
        }
        for arm, losses in likelihoods.items()
        for seed, loss in enumerate(losses)
    }
    return build_page(outcome_of(config, results))


def test_many_arms_are_told_apart_by_letters_and_few_pair_by_pair():
    few = {"one": [1.00, 1.01, 1.02], "two": [1.00, 1.02, 1.01], "three": [2.00, 2.01, 2.02]}
    many = few | {"four": [2.01, 2.01, 2.02], "five": [3.00, 3.01, 3.03]}
    page = page_of(few)
    assert "two - three" in page
    assert "share a letter" not in page
    page = page_of(many)
    for arm, cell in {
        "one": "1.010 a",
        "two": "1.010 a",
        "three": "2.010 b",
        "four": "2.013 b",
        "five": "3.013 c",
    }.items():
        assert f'<td>{arm}</td><td class="r">{cell}</td>' in page
    assert "one - five" in page, "the best arm beside each other one, with intervals"
    assert "three - five" not in page
