"""Kill a run about once a minute for ten minutes: how much of the time was training that counts, and is the result the same?

The supervisor starts the command again at once, in a fresh interpreter each time. Training that counts is the time of the steps in
the final log (work done twice is not in it); the ratio of that to all the time there was is what Llama 3's authors call effective
training time (above 0.9 at a failure every three hours on 16,384 devices). Kills fall by an exponential distribution, seeded.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from tests.torture.toy_run import Failure, Toy, compare
from tests.torture.trials import Bench

LONG, SHORT = 1, 1
LEAST = 0.9
CLEAN = {"validation_steps": 1000, "checkpoint_steps": 0, "checkpoint_minutes": 0.05, "record_rows": True}


def trial(bench: Bench, number: int) -> None:
    """Train under kills, then without, and compare."""
    minutes, mean = (
        (0.03, 0.7) if bench.is_short else (bench.options["minutes"], bench.options["mean_seconds"])
    )
    often = {"checkpoint_steps": 5} if bench.is_short else {}
    toy = bench.toy(**(CLEAN | often), budget_steps=_steps(bench, 60 * minutes))
    whole = toy.reference()
    folder = toy.new_run(bench.scratch / "trial")
    chance = bench.chance(number)
    began, kills = time.monotonic(), 0
    while True:
        child = toy.start(folder, "--json", fresh=not bench.is_short)
        until = time.monotonic() + chance.expovariate(1 / mean)
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        if child.poll() is None:
            child.kill()
            kills += 1
            continue
        if child.code:
            raise Failure(f"exit code {child.code}: {child.output()[-1500:]}")
        break
    seconds = time.monotonic() - began
    ratio = _useful_seconds(folder / "run") / seconds
    bench.options["report"] = {
        "kills": kills,
        "wall_seconds": round(seconds, 1),
        "effective_training_time_ratio": round(ratio, 4),
    }
    compare(whole, folder / "run", same_checkpoints=False)
    if not bench.is_short and ratio < LEAST:
        raise Failure(f"{ratio:.3f} of the time was training that counts, {kills} kills in {seconds:.0f} s")


def _useful_seconds(run: Path) -> float:
    text = (run / "pretrain" / "timing.jsonl").read_text(encoding="utf-8")
    return sum(float(json.loads(line)["seconds"]) for line in text.splitlines())


def _steps(bench: Bench, seconds: float) -> int:
    """Return how many steps take about so long now."""
    toy = Toy(bench.scratch, **CLEAN, budget_steps=60)
    folder = toy.new_run(bench.scratch / "timed-steps")
    toy.finish(folder)
    each = _useful_seconds(folder / "run") / 60
    shutil.rmtree(folder)
    return max(60, round(0.9 * seconds / each))


def _from_the_start() -> None:
    """A resume finds no checkpoint."""
    from seedbed.training.checkpoint import Checkpoints

    plain = Checkpoints.newest

    def newest(self):
        found = plain(self)
        if found is not None:
            raise SystemExit(f"a checkpoint was there, and is not taken: {found.path}")
        return found

    Checkpoints.newest = newest


def _moments_lost() -> None:
    """A resume begins with empty moments."""
    from seedbed.training.state import TrainingState

    TrainingState.load_optimizer_tensors = lambda self, tensors: None


MUTANTS = {"moments lost": _moments_lost, "no checkpoint taken": _from_the_start}
