"""Start one run eight times at once: one wins, seven are told at once who has it, and write nothing. Kill the owner: the next has it.

A round is eight starts behind a barrier, in a folder that is new, or was left by an owner that was killed: then the file of the
lock still names it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.torture.toy_run import Failure, compare
from tests.torture.trials import Bench

LONG, SHORT = 100, 2
STARTS = 8
SMALL = {"budget_steps": 6, "checkpoint_steps": 2, "validation_steps": 3, "checkpoint_minutes": 1000.0}
PATIENCE_SECONDS = 5.0


def trial(bench: Bench, number: int) -> None:
    """Start eight at once, look at the losers, kill the winner, start eight again, let the winner finish."""
    toy = bench.toy(**SMALL)
    whole = toy.reference()
    folder = toy.new_run(bench.scratch / "trial")
    winner = _round(toy, folder, "first")
    winner.kill()
    _round(toy, folder, "second").wait()
    compare(whole, folder / "run", same_checkpoints=True)


def _round(toy: Any, folder: Path, name: str) -> Any:
    """Start eight; return the winner, which still runs or has just ended."""
    gate, go = folder / f"gate-{name}", folder / f"go-{name}"
    os.mkfifo(gate)
    children = []
    for number in range(STARTS):
        place = folder / f"{name}-{number}"
        place.mkdir()
        (place / "recipe.yaml").symlink_to(folder / "recipe.yaml")
        log = str(place / "operations.jsonl")
        hooks = [
            [
                "locks:wait_at_gate",
                {"gate": str(gate), "root": str(folder / "run"), "log": log, "go": str(go)},
            ]
        ]
        children.append(toy.start(place, hooks=hooks))
    descriptor = os.open(gate, os.O_WRONLY)  # opens once all wait, and lets all go by closing
    time.sleep(0.05)
    os.close(descriptor)
    until = time.monotonic() + PATIENCE_SECONDS
    while sum(child.poll() == 7 for child in children) < STARTS - 1 and time.monotonic() < until:
        time.sleep(0.005)
    losers = [child for child in children if child.poll() == 7]
    go.touch()
    winners = [child for child in children if child.poll() != 7]
    if len(winners) != 1:
        raise Failure(f"{len(winners)} of {STARTS} own the run: {[child.code for child in children]}")
    for child in losers:
        owner = re.search(r"is in use by process (\d+) on (\S+)\.", child.output())
        if owner is None or int(owner[1]) != winners[0].pid or owner[2] != platform.node():
            raise Failure(f"not told that process {winners[0].pid} has it: {child.output()[-500:]}")
        written = (child.said.parent / "operations.jsonl").read_text().splitlines()
        if wrong := [line for line in written if ".lock" not in line and '"mkdir", "."' not in line]:
            raise Failure(f"a loser wrote: {wrong[:3]}")
    return winners[0]


def wait_at_gate(gate: str, root: str, log: str, go: str) -> None:
    """Count what this process writes, wait until the gate opens; and let an owner wait for the losers, who may be slow to come."""
    from tests.torture import faults

    from seedbed import lock

    plain = lock.owned

    @contextlib.contextmanager
    def owned(run: Path) -> Iterator[None]:
        with plain(run):
            until = time.monotonic() + 2 * PATIENCE_SECONDS
            while not Path(go).exists() and time.monotonic() < until:
                time.sleep(0.005)
            yield

    lock.owned = owned
    faults.install(root, log=log)
    with open(gate, "rb") as file:
        file.read()


def _no_lock() -> None:
    """The kernel is not asked."""
    import fcntl

    fcntl.flock = lambda descriptor, operation: None


def _lock_by_file() -> None:
    """A file that exists is the lock, as so often: who was killed keeps it."""
    from seedbed import lock
    from seedbed.commands import pretrain  # noqa: F401 - it imports `owned` when it runs
    from seedbed.errors import LockedError

    @contextlib.contextmanager
    def owned(run):
        run.mkdir(parents=True, exist_ok=True)
        try:
            with (run / ".lock").open("x") as file:
                file.write(f"process {os.getpid()} on {platform.node()}")
        except FileExistsError:
            time.sleep(0.2)
            raise LockedError(f"{run} is in use by {(run / '.lock').read_text()}.") from None
        yield
        (run / ".lock").unlink()

    lock.owned = owned


MUTANTS = {"no lock": _no_lock, "a file is the lock": _lock_by_file}
