"""Take one of two workers away: killed, stopped, or with one bit of its weights flipped. The other must not wait for ever.

A killed worker is noticed by its connections, a stopped one by its heartbeat (within 60 seconds; the short tier is less patient),
a flipped bit by the comparison of weights every 50 steps. The same command then ends as a run on two workers that nothing
happened to. The long tier starts workers by torchrun, as a user does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.torture.children import Child
from tests.torture.toy_run import Failure, Toy, compare, free_port, last_window, newest, workers
from tests.torture.trials import Bench

LONG, SHORT = 45, 3
KINDS = ("killed", "stopped", "flipped")
SECONDS = {"killed": 30.0, "stopped": 60.0}
STEPS = {"budget_steps": 45, "validation_steps": 15, "micro_batch_rows": 4}


def trial(bench: Bench, number: int) -> None:
    """Take one away, wait for the others, start again, compare."""
    kind = KINDS[number % 3]
    if bench.options.get("kind"):
        kind = bench.options["kind"]
    chance = bench.chance(number)
    if kind == "flipped":
        _flip(bench, chance)
        return
    toy = bench.toy(**STEPS)
    whole = _whole(toy)
    folder = toy.new_run(bench.scratch / "trial")
    patience = 2.0 if bench.is_short else 0.0
    children, pids = _start(toy, folder, is_short=bench.is_short, patience=patience)
    step = chance.randint(1, 30)
    rank = chance.randint(0, 1) if kind == "killed" else 1
    try:
        while last_window(folder / "run") < step:
            if all(child.poll() is not None for child in children):
                raise Failure(f"ended before step {step}: {children[0].output()[-1500:]}")
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        ranks = pids()
        if len(ranks) == 2:
            _take(children, ranks, rank, kind, pids)
        for child in children:
            child.wait(90.0)
    finally:
        for child in children:
            child.kill()
    if kind == "stopped" and "has not been heard of" not in children[0].output():
        raise Failure(f"the heartbeat said nothing: {children[0].output()[-1500:]}")
    again, _ = _start(toy, folder, is_short=bench.is_short)
    if codes := [code for child in again if (code := child.wait())]:
        raise Failure(f"exit code {codes[0]} of the restart: {again[0].output()[-1500:]}")
    compare(whole, folder / "run")


def _take(children: list[Child], ranks: list[int], rank: int, kind: str, pids: Any) -> None:
    """Kill or stop a worker, and fail if the other one is there for too long."""
    os.kill(ranks[rank], signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
    began = time.monotonic()
    try:
        while ranks[1 - rank] in pids():
            if time.monotonic() - began > SECONDS[kind]:
                raise Failure(f"the other worker is still there after {SECONDS[kind]:.0f} s")
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(ranks[rank], signal.SIGKILL)


def _flip(bench: Bench, chance: Any) -> None:
    """Flip a bit of one worker's weights, and wait for the comparison."""
    toy = bench.toy(budget_steps=60, validation_steps=30, checkpoint_steps=20, micro_batch_rows=4)
    folder = toy.new_run(bench.scratch / "trial")
    step = chance.randint(3, 40)
    flip = {"step": step, "worker": chance.randint(0, 1), "bit": chance.randint(0, 20)}
    children, _ = _start(toy, folder, is_short=bench.is_short, flip=flip)
    for child in children:
        child.wait(90.0)
    said = "".join(child.output() for child in children)
    if all(child.code == 0 for child in children) or "workers 0 and 1 differ in" not in said:
        raise Failure(f"nothing was found: {[child.code for child in children]} {said[-1500:]}")
    if last_window(folder / "run") > step + 100:
        raise Failure(f"found after step {last_window(folder / 'run')}, flipped at {step}")
    window = int(newest(folder / "run").name[-8:])
    if window >= 50 * (step // 50 + 1):
        raise Failure(f"step {window} was saved though it differed")


def _start(
    toy: Toy, folder: Path, *, is_short: bool, patience: float = 0.0, flip: dict[str, Any] | None = None
) -> tuple[list[Child], Any]:
    """Start two workers; return what is waited for, and what gives the process ids that live, by rank."""
    hooks: list[Any] = []
    if patience:
        hooks.append(["worker:be_impatient", {"seconds": patience}])
    if flip:
        hooks.append(["worker:flip", flip])
    if is_short:
        children = [
            toy.start(folder, "--json", hooks=hooks, environment=environment)
            for environment in workers(2, free_port())
        ]
        return children, lambda: [child.pid for child in children if child.poll() is None]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
    ]
    child = toy.start(folder, "--json", fresh=True, hooks=hooks, launcher=launcher)
    return [child], lambda: _ranks(child)


def _ranks(launched: Child) -> list[int]:
    """Return the process ids of the workers torchrun started that still run, in the order of their ranks."""
    import psutil

    ranks = []
    try:
        found = psutil.Process(launched.pid).children(recursive=True)
    except psutil.Error:
        return []
    for process in found:
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "RANK" in process.environ():
                ranks.append((process.environ()["RANK"], process.pid))
        except psutil.Error:  # it has just ended, or has just begun
            continue
    return [pid for _, pid in sorted(ranks)]


def _whole(toy: Toy) -> Path:
    """Return a run of two workers that nothing happened to, without the mutant."""
    whole = toy.folder / "two-workers"
    if not (whole / "done").exists():
        plain = Toy(toy.scratch, objective=toy.objective, **toy.training)
        shutil.rmtree(whole, ignore_errors=True)
        plain.new_run(whole)
        children, _ = _start(plain, whole, is_short=True)
        codes = [child.wait() for child in children]  # wait for both
        if any(codes):
            raise Failure(children[0].output()[-1500:])
        (whole / "done").touch()
    return whole / "run"


def be_impatient(seconds: float) -> None:
    """Let heartbeats come often and be missed soon."""
    from seedbed.training import parallel

    plain = parallel.Heartbeat

    def impatient(*arguments: Any, **named: Any) -> Any:
        return plain(*arguments, **{"every_seconds": seconds / 8, "patience_seconds": seconds, **named})

    parallel.Heartbeat = impatient


def flip(step: int, worker: int, bit: int) -> None:
    """Flip a bit of a weight of one worker after a step."""
    if os.environ.get("RANK") != str(worker):
        return
    import torch

    from seedbed.commands import pretraining

    plain = pretraining.run_window

    def run_window(setting: Any, state: Any, *rest: Any, **options: Any) -> Any:
        result = plain(setting, state, *rest, **options)
        if state.window == step:
            weight = list(state.learner.parts.parameters())[1]
            weight.data.view(torch.int32).view(-1)[0] ^= 1 << bit
        return result

    pretraining.run_window = run_window


def _no_heartbeat() -> None:
    """Nobody beats, and nobody listens."""
    from seedbed.training.heartbeat import Heartbeat

    SECONDS["stopped"] = 6.0
    Heartbeat._run = lambda self: None


def _no_comparison() -> None:
    """Weights are never compared."""
    from seedbed.training.drift import DriftHook

    DriftHook.is_due = lambda self, state: False


MUTANTS = {"no comparison": _no_comparison, "no heartbeat": _no_heartbeat}
