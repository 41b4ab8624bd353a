"""Kill a run at random moments and run the same command again: it must end as if nothing had happened, to the bit.

A fifth of the trials are killed two to five times, at random moments that often fall into the resume, or at once when a step
around the end of an epoch is logged; a tenth start from raw text; a tenth go through fresh interpreters.
"""

from __future__ import annotations

import random
import shutil
import time

from tests.torture.children import Child
from tests.torture.toy_run import Failure, compare, each_row_once, last_window
from tests.torture.trials import Bench

LONG, SHORT = 200, 3
EPOCH_STEPS = (8, 9, 17, 18)
"""Around the ends of epochs: 69 rows, 8 a step."""


def trial(bench: Bench, number: int) -> None:
    """Kill, go on, compare."""
    chance = bench.chance(number)
    toy = bench.toy(objective=bench.options.get("objective", "masked_lm"))
    whole = toy.reference()
    if number == 0:
        each_row_once(whole)
    has_stages = number % 10 != 5
    fresh = number % 10 == 6 and not bench.is_short
    folder = toy.new_run(bench.scratch / "trial", has_stages=has_stages)
    kills = chance.randint(2, 5) if number % 5 == 1 else 1
    seconds = _duration(bench)
    for index in range(kills):
        child = toy.start(folder, "--json", fresh=fresh)
        if number % 5 == 1 and index == 0:
            _kill_at_step(child, folder, chance.choice(EPOCH_STEPS))
        elif index:
            _kill_after(child, chance.uniform(0, 0.5 * seconds), fresh)  # often in the resume itself
        else:
            _kill_after(child, chance.uniform(0, seconds), fresh)
        if child.code not in (0, 137):
            raise Failure(f"exit code {child.code} before the kill: {child.output()[-800:]}")
    toy.finish(folder, "--json", fresh=fresh)
    compare(whole, folder / "run")


def _duration(bench: Bench) -> float:
    """Return the seconds a run takes now, measured once."""
    if "seconds" not in bench.options:
        toy = bench.toy(objective=bench.options.get("objective", "masked_lm"))
        folder = toy.new_run(bench.scratch / "timed-run")
        began = time.monotonic()
        toy.start(folder).wait()
        bench.options["seconds"] = time.monotonic() - began
        shutil.rmtree(folder)
    return float(bench.options["seconds"])


def _kill_after(child: Child, seconds: float, fresh: bool) -> None:
    if fresh:  # the imports come on top
        seconds += 4.0 * random.Random(seconds).random()
    until = time.monotonic() + seconds
    while time.monotonic() < until and child.poll() is None:
        time.sleep(0.001)
    child.kill()


def _kill_at_step(child: Child, folder, step: int) -> None:
    while child.poll() is None:
        if last_window(folder / "run") >= step:
            child.kill()
        time.sleep(0.001)


def _forget_dropout() -> None:
    """A resume that draws other dropout than the run it goes on with."""
    from seedbed.commands import assembly
    from seedbed.training import checkpoint

    plain_load, plain_fold, resumed = checkpoint.Checkpoints.load, assembly.fold, []

    def load(self, state, artifact):
        resumed.append(1)
        return plain_load(self, state, artifact)

    checkpoint.Checkpoints.load = load
    assembly.fold = lambda key, number: plain_fold(key, number + len(resumed))


def _skip_a_window() -> None:
    """A resume that leaves out the rows of one step."""
    from seedbed.training import checkpoint

    plain = checkpoint.Checkpoints.load

    def load(self, state, artifact):
        saved = plain(self, state, artifact)
        state.window += 1
        return saved

    checkpoint.Checkpoints.load = load


def _lose_moments() -> None:
    """A resume that begins with empty moments."""
    from seedbed.training.state import TrainingState

    TrainingState.load_optimizer_tensors = lambda self, tensors: None


MUTANTS = {
    "other dropout": _forget_dropout,
    "a window skipped": _skip_a_window,
    "moments lost": _lose_moments,
}
