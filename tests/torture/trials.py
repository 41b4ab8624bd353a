"""Run the trials of one item, count what failed, and say what that bounds."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.torture.children import end_all
from tests.torture.toy_run import Failure, Toy, scratch_folder

SAYS_EVERY_SECONDS = 20.0


@dataclass
class Bench:
    """What a trial works with.

    Attributes:
        item: its name.
        scratch: a folder for everything shared by trials.
        seed: of all that is drawn.
        mutant: by which broken variant children run; None: by seedbed as it is.
        is_short: the tier that takes seconds.
        options: of the command line.
    """

    item: str
    scratch: Path
    seed: int = 0
    mutant: str | None = None
    is_short: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def toy(self, **choices: Any) -> Toy:
        """Return a toy whose children suffer the mutant."""
        broken = None if self.mutant is None else (self.item, self.mutant)
        return Toy(self.scratch, mutant=broken, **choices)

    def chance(self, number: int) -> random.Random:
        """Return the randomness of a trial."""
        return random.Random(f"{self.seed}/{self.item}/{number}")


def upper95(failures: int, trials: int) -> float:
    """Return the 95 % upper bound (one-sided) of the rate of failure: 3/n for none, else Clopper-Pearson, by bisection."""
    if failures == 0:
        return min(1.0, 3 / trials) if trials else 1.0
    if failures >= trials:
        return 1.0

    def at_most(rate: float) -> float:
        term, total = (1 - rate) ** trials, 0.0
        for k in range(failures + 1):
            total += term
            term *= (trials - k) / (k + 1) * rate / (1 - rate)
        return total

    low, high = failures / trials, 1.0 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 0.05 else (low, middle)
    return high


def run_item(
    name: str,
    module: ModuleType,
    *,
    trials: int | None,
    seed: int,
    mutant: str | None,
    is_short: bool,
    only: int | None,
    options: dict[str, Any],
    scratch: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run an item and return its result; progress and failures go to standard error.

    A module has `trial(bench, number)`, which raises where seedbed did what it must not, `LONG` and `SHORT` numbers of trials, or
    `count(bench)` where the item goes through everything there is, and `MUTANTS`.
    """
    own = scratch is None
    bench = Bench(name, scratch or scratch_folder(), seed, mutant, is_short, options)
    began = time.monotonic()
    try:
        everything = module.count(bench) if hasattr(module, "count") else None
        numbers = _numbers(module, trials, everything, is_short)
        if only is not None:
            numbers = [only]
        failed, done = _run(bench, module.trial, numbers, command)
    finally:
        if own:
            shutil.rmtree(bench.scratch, ignore_errors=True)
    return {
        "id": name if mutant is None else f"{name} (mutant {mutant})",
        "trials": done,
        "failures": len(failed),
        "upper95": round(upper95(len(failed), done), 4),
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
    } | bench.options.get("report", {})


def _numbers(module: ModuleType, trials: int | None, everything: int | None, is_short: bool) -> list[int]:
    """Choose trials: the first so many, or of a finite number so many spread evenly."""
    wanted = trials if trials is not None else module.SHORT if is_short else getattr(module, "LONG", None)
    if everything is None:
        assert wanted is not None
        return list(range(wanted))
    if wanted is None or wanted >= everything:
        return list(range(everything))
    return sorted({round(i * (everything - 1) / max(1, wanted - 1)) for i in range(wanted)})


def _run(
    bench: Bench, trial: Callable[[Bench, int], None], numbers: list[int], command: str
) -> tuple[list[int], int]:
    """Return the trials that failed, and how many were done."""
    failed: list[int] = []
    began = said = time.monotonic()
    done = 0
    for number in numbers:
        done += 1
        folder = bench.scratch / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            trial(bench, number)
        except Exception as error:
            if bench.mutant is not None and not isinstance(error, Failure | TimeoutError):
                raise  # the item is broken, not its mutant
            failed.append(number)
            text = str(error) if isinstance(error, Failure) else traceback.format_exc()
            sys.stderr.write(f"FAILED trial {number}: {text}\nreplay: {command} --only {number}\n")
            if bench.mutant is not None:
                break  # it is caught
        finally:
            end_all()
        now = time.monotonic()
        if now - said > SAYS_EVERY_SECONDS:
            said, rate = now, done / (now - began)
            left = (len(numbers) - done) / rate
            sys.stderr.write(
                f"{bench.item}: {done} of {len(numbers)}, {len(failed)} failed, {60 * rate:.1f} a minute, {left:.0f} s left\n"
            )
        sys.stderr.flush()
    return failed, done


def as_line(result: dict[str, Any]) -> str:
    """Return the one line a run of an item ends with."""
    return json.dumps(result)
