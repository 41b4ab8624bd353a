"""Losses by slices: only arms of one kind stand side by side, and a slice that one of them lacks is left out."""

from __future__ import annotations

from seedbed.compare.page import _slices_apart


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
