"""Equal minutes on a machine whose speed moves: what an arm reads is measured once, by a run whose machine kept its speed.

The first seed of an arm is probed and gets the steps that fit into the minutes. Where its training took about as long, and the
machine multiplied as fast as for the other arms, the seeds after it read as many tokens: how fast the machine is while they
train changes their time and nothing else, and the seeds of an arm stay one experiment.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from seedbed.compare.config import CompareConfig

__all__ = ["measured_run", "usable"]

Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""By arm and seed, as `commands/arm.py` writes them; `tokens_from` is the seed whose run an arm's tokens were measured by."""


def usable(
    config: CompareConfig, results: Results
) -> tuple[dict[tuple[str, int], Mapping[str, Any]], list[tuple[str, int]]]:
    """Return the results that compare, and which do not: at equal minutes, what was measured at one speed of the machine does."""
    if config.cost.kind != "minutes" or not results:
        return dict(results), []
    measured = {key: r for key, r in results.items() if r.get("tokens_from") is None}
    speeds = {key: [float(s) for s in r["product_gflops"]] for key, r in measured.items()}
    middle = statistics.median([s for own in speeds.values() for s in own] or [1.0])
    moved = {key: max(abs(s / middle - 1.0) for s in own) for key, own in speeds.items()}
    # A product takes a second or two. That a machine was slow at the moment a run was planned shows in the tokens it was given.
    for arm in {arm for arm, _ in results}:
        tokens = {key: float(r["tokens"]) for key, r in results.items() if key[0] == arm}
        if len(tokens) > 2:
            usual = statistics.median(tokens.values())
            for key in moved.keys() & tokens.keys():
                moved[key] = max(moved[key], abs(tokens[key] / usual - 1.0))
    for key, result in results.items():
        if key not in measured:
            source = (key[0], result["tokens_from"])
            is_same = source in results and results[source]["tokens"] == result["tokens"]
            moved[key] = moved.get(source, 0.0) if is_same else float("inf")
    drifted = [key for key in results if moved[key] > config.cost.max_drift]
    return {key: r for key, r in results.items() if key not in drifted}, drifted


def measured_run(config: CompareConfig, results: Results, arm: str) -> Mapping[str, Any] | None:
    """Return the result that says what an arm reads in the minutes there are; None: none does yet.

    It counts, and its training took the minutes give or take `max_drift`.
    """
    if config.cost.minutes is None:
        return None
    kept, _ = usable(config, results)
    for (name, _), result in sorted(kept.items(), key=lambda item: item[0][1]):
        took = float(result["train_seconds"]) / 60.0 / config.cost.minutes
        if name == arm and result.get("tokens_from") is None and abs(took - 1.0) <= config.cost.max_drift:
            return result
    return None
