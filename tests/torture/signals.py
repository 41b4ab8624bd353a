"""Ask a run to stop by SIGTERM or SIGINT: the step is finished and saved, nothing done is lost, and the run goes on to the bit.

Half of the signals come at random moments. The others come exactly at a file operation of a checkpoint being saved, where in
every second trial another signal follows in the middle of the same save.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from tests.torture.toy_run import Failure, compare, last_window, newest
from tests.torture.trials import Bench

LONG, SHORT = 50, 4
PATIENCE_SECONDS = 10.0


def trial(bench: Bench, number: int) -> None:
    """Signal, look at what was saved, go on, compare."""
    chance = bench.chance(number)
    toy = bench.toy()
    whole = toy.reference()
    folder = toy.new_run(bench.scratch / "trial")
    kind = signal.SIGTERM if number % 2 else signal.SIGINT
    if number % 4 >= 2:
        first = chance.randint(1, 60)
        hooks = [["signals:at_saving", {"root": str(folder / "run"), "first": first, "kind": int(kind)}]]
        hooks[0][1]["second"] = first + chance.randint(1, 6) if number % 8 >= 6 else 0
        child = toy.start(folder, "--json", hooks=hooks)
        child.wait()
    else:
        child = toy.start(folder, "--json")
        step = chance.randint(0, 23)
        while last_window(folder / "run") < step and child.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        child.send(kind)
        began = time.monotonic()
        child.wait(PATIENCE_SECONDS)
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise Failure(f"it took {time.monotonic() - began:.1f} s to stop")
    if child.code not in (0, 128 + kind):
        raise Failure(f"exit code {child.code} after {kind.name}: {child.output()[-800:]}")
    stopped = "stopped by" in child.output()
    report = bench.options.setdefault("report", {"stopped_by_a_signal": 0})
    report["stopped_by_a_signal"] += stopped
    if stopped:
        window = last_window(folder / "run")
        if newest(folder / "run").name != f"step-{window:08d}":
            raise Failure(
                f"the log ends at step {window}, the newest checkpoint is {newest(folder / 'run').name}"
            )
    toy.finish(folder, "--json")
    compare(whole, folder / "run", same_checkpoints=not stopped)


def at_saving(root: str, first: int, kind: int, second: int) -> None:
    """Signal this process at its `first` file operation on checkpoints, and again at the `second`."""
    import os

    from tests.torture import faults

    count = 0

    def meet(self: Any, name: str, path: str, other: str = "", *, half: Any = None) -> None:
        nonlocal count
        if "/checkpoints" in path:
            count += 1
            # Before the loop nobody listens yet: the first anchor is saved there.
            if count in (first + 20, second + 20 if second else 0):
                os.kill(os.getpid(), kind)

    faults.Faults.meet = meet
    faults.install(root)


def _saves_nothing() -> None:
    """A signal ends the loop without a checkpoint."""
    from seedbed.training import hooks

    hooks.CheckpointHook.finish = lambda self, state: None


def _dies_at_once() -> None:
    """A signal raises in the middle of the step."""
    import contextlib

    from seedbed.commands import pretraining

    @contextlib.contextmanager
    def received():
        def die(number, frame):
            raise SystemExit(128 + number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, die)
        yield []

    pretraining._signals = received


MUTANTS = {"nothing saved": _saves_nothing, "dies at once": _dies_at_once}
