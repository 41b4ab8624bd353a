"""Spoil gradients: NaN in one element, an infinite loss, a loss a hundredfold; in 1, 3 or 20 steps in a row, everywhere or on one of two.

A spoilt step must leave weights and optimizer as they were, to the bit, on all workers; three in a row roll back once; twenty use
up the rollbacks and stop with exit code 5; the log has every one of them. A run that was stopped in between and resumed makes the
same of it, to the bit. And where nothing is spoilt, the guard against spikes changes no bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tests.torture.children import Child
from tests.torture.toy_run import Failure, Toy, compare, free_port, newest, read_log, workers
from tests.torture.trials import Bench

SHORT = None
KINDS = {"nan": None, "inf": float("inf"), "hundredfold": 100.0}
CASES = [
    *((kind, number, 1) for number in (1, 3, 20) for kind in KINDS),
    ("none", 0, 1),
    *((kind, number, 2) for number in (1, 3, 20) for kind in KINDS),
    ("none", 0, 2),
]
SHORT_CASES = [
    ("nan", 1, 1),
    ("hundredfold", 1, 1),
    ("inf", 3, 1),
    ("hundredfold", 20, 1),
    ("none", 0, 1),
    ("nan", 1, 2),
]


def count(bench: Bench) -> int:
    """Return the number of cases."""
    return len(SHORT_CASES if bench.is_short else CASES)


def trial(bench: Bench, number: int) -> None:
    """Spoil, look, and do the same again with a stop in between."""
    kind, times, num_workers = (SHORT_CASES if bench.is_short else CASES)[number]
    toy = bench.toy(spike_guard=True)
    if kind == "none":
        _changes_nothing(bench, toy, num_workers)
        return
    first = bench.chance(number).choice([3, 5, 9])  # from 0
    spoilt = {"kind": kind, "windows": list(range(first, first + times)), "worker": num_workers - 1}
    folder = toy.new_run(bench.scratch / "trial")
    code, said = _train(toy, folder, num_workers, spoilt)
    log = read_log(folder / "run")
    skipped = [line["window"] - 1 for line in log if line.get("is_skipped")]
    rollbacks = [line for line in log if line["kind"] == "rollback"]
    expected = spoilt["windows"] if times < 20 else spoilt["windows"][:12]
    if code != (5 if times == 20 else 0):
        raise Failure(f"exit code {code}: {said[-1500:]}")
    if skipped != expected:
        raise Failure(f"skipped were {skipped}, spoilt {expected}")
    if len(rollbacks) != {1: 0, 3: 1, 20: 3}[times]:
        raise Failure(f"{len(rollbacks)} rollbacks")
    if any(not 0 < r["first_bad"] - r["to"] <= 6 for r in rollbacks):
        raise Failure(f"rolled back to {[(r['first_bad'], r['to']) for r in rollbacks]}")
    _agree(folder, num_workers)
    if code == 0:
        state = json.loads((newest(folder / "run") / "state.json").read_text(encoding="utf-8"))
        undone = rollbacks[0]["from"] - rollbacks[0]["to"] if rollbacks else times
        if state["num_skipped"] != undone:
            raise Failure(f"{state['num_skipped']} steps counted as skipped or undone, not {undone}")
        if bench.is_short and num_workers == 2:
            return
        again = toy.new_run(bench.scratch / "trial" / "again")
        _train(toy, again, num_workers, spoilt, "--stop-after", str(first))
        code, said = _train(toy, again, num_workers, spoilt)
        if code:
            raise Failure(f"exit code {code} after a stop: {said[-1500:]}")
        compare(folder / "run", again / "run", same_checkpoints=False)


def _changes_nothing(bench: Bench, toy: Toy, num_workers: int) -> None:
    without = bench.toy()
    runs = []
    for index, each in enumerate((toy, without)):
        folder = each.new_run(bench.scratch / "trial" / str(index))
        code, said = _train(each, folder, num_workers, {"kind": "none", "windows": [], "worker": 0})
        if code:
            raise Failure(said[-1500:])
        runs.append(folder / "run")
    for name in ("model.safetensors", "optimizer.safetensors"):
        if (newest(runs[0]) / name).read_bytes() != (newest(runs[1]) / name).read_bytes():
            raise Failure(f"the guard changed {name}")
    if read_log(runs[0]) != read_log(runs[1]):
        raise Failure("the guard changed the log")


def _train(toy: Toy, folder: Path, num_workers: int, spoilt: dict[str, Any], *words: str) -> tuple[int, str]:
    """Train on so many workers; return the largest exit code and what was said."""
    hooks = [["numeric:spoil", {**spoilt, "told": str(folder)}]]
    if num_workers == 1:
        child = toy.start(folder, *words, hooks=hooks)
        return child.wait(), child.output()
    children: list[Child] = [
        toy.start(folder, *words, hooks=hooks, environment=environment)
        for environment in workers(num_workers, free_port())
    ]
    codes = [child.wait() for child in children]
    if len(set(codes)) > 1:
        raise Failure(f"the workers ended with {codes}: {children[0].output()[-1500:]}")
    return codes[0], children[0].output()


def _agree(folder: Path, num_workers: int) -> None:
    """Fail where workers had other weights after some step."""
    told = [(folder / f"weights-{worker}.txt").read_text() for worker in range(num_workers)]
    if len(set(told)) > 1:
        raise Failure("the workers' weights differ")


def spoil(kind: str, windows: list[int], worker: int, told: str) -> None:
    """Spoil the gradients of these windows in this process, and see that such a step changes nothing."""
    import torch

    from seedbed.commands import pretraining
    from seedbed.training.step import Learner

    rank = int(os.environ.get("RANK", "0"))
    run_window, forward = pretraining.run_window, Learner.forward
    factor = [1.0]

    def digest(state: Any) -> str:
        found = hashlib.sha256()
        for tensor in [*state.parameters().values(), *state.optimizer_tensors().values()]:
            found.update(tensor.detach().numpy().tobytes())
        return found.hexdigest()

    def spoilt_forward(self: Any, *arguments: Any, **named: Any) -> Any:
        total, terms = forward(self, *arguments, **named)
        if factor[0] != 1.0:
            return total * factor[0], {name: term * factor[0] for name, term in terms.items()}
        return total, terms

    def one_nan(gradient: Any) -> Any:
        spoilt = gradient.clone()
        spoilt.view(-1)[7] = float("nan")
        return spoilt

    def spoilt_window(setting: Any, state: Any, *rest: Any, **named: Any) -> Any:
        is_hit, handle = state.window in windows, None
        before = digest(state) if is_hit and state.optimizer_tensors() else ""
        if is_hit and rank == worker:
            if kind == "nan":
                handle = next(iter(state.parameters().values())).register_hook(one_nan)
            else:
                factor[0] = KINDS[kind]
        try:
            result = run_window(setting, state, *rest, **named)
        finally:
            factor[0] = 1.0
            if handle is not None:
                handle.remove()
        after = digest(state)
        if before and before != after:
            os.write(2, f"window {state.window} was spoilt and changed something\n".encode())
            os._exit(70)
        with open(Path(told) / f"weights-{rank}.txt", "a", encoding="utf-8") as file:
            file.write(f"{state.window} {after}\n")
        return result

    Learner.forward = spoilt_forward
    pretraining.run_window = spoilt_window
    torch.set_num_threads(1)


def _applied_anyway() -> None:
    """The optimizer never hears that a gradient is not finite."""
    from seedbed.training import step

    plain = step.set_groups

    def set_groups(optimizer, *rest):
        if not getattr(optimizer, "is_deaf", False):
            optimizer.is_deaf = True
            update = optimizer.step

            def deaf():
                optimizer.found_inf = None
                return update()

            optimizer.step = deaf
        return plain(optimizer, *rest)

    step.set_groups = set_groups


def _window_forgotten() -> None:
    """The guard's window is not in the checkpoint: after a resume it knows no norms."""
    from seedbed.training.spikes import SpikeGuard

    SpikeGuard.values = lambda self: []


def _window_poisoned() -> None:
    """What is not finite or a spike enters the window, and is half of it soon."""
    import torch

    from seedbed.training.spikes import SpikeGuard

    plain = SpikeGuard.take

    def take(self, norm, is_finite):
        is_spike = plain(self, norm, is_finite)
        self._logs = torch.where(is_spike, torch.full_like(self._logs, 50.0), self._logs)
        return is_spike

    SpikeGuard.take = take


MUTANTS = {
    "applied anyway": _applied_anyway,
    "window forgotten": _window_forgotten,
    "window poisoned": _window_poisoned,
}
