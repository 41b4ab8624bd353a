"""Kill a run before every single one of its file operations, and in the middle of every write: nothing is left to chance.

SQLite's way: the 1st, the 2nd, ... until a run gets through. Whatever the point, a checkpoint loads wherever one had been
finished, and the same command ends the run bit for bit as if nothing had happened, with no file too many or too few.

`--power` takes away the power instead: of what lies on the disk only that remains which was flushed (`power.py`).
`--strace` has the kernel's tracer do the killing, which sees libraries' own system calls too.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tests.torture import power
from tests.torture.children import Child, launch
from tests.torture.toy_run import Failure, Toy, compare
from tests.torture.trials import Bench

LONG, SHORT = None, 5
SMALL = {"budget_steps": 6, "checkpoint_steps": 2, "validation_steps": 3, "checkpoint_minutes": 1000.0}
"""Three checkpoints: the third makes the first one weights only."""
CALLS = ("write", "fsync", "rename", "mkdir", "unlink,unlinkat", "rmdir", "link,linkat", "symlink,symlinkat")
"""What the kernel's tracer kills at. Calls of the interpreter's own start are among them, and harmless."""


def count(bench: Bench) -> int:
    """Return the number of crash points."""
    if bench.options.get("power"):
        return power.count(_toy(bench))
    if bench.options.get("strace"):
        return sum(_traced(bench).values())
    return len(_points(bench))


def trial(bench: Bench, number: int) -> None:
    """Kill at one point, go on, compare."""
    toy = _toy(bench)
    whole = toy.reference()
    folder = toy.new_run(bench.scratch / "trial")
    if bench.options.get("power"):
        power.fail(toy, folder, number)
    elif bench.options.get("strace"):
        _kill_by_strace(bench, toy, folder, number)
    else:
        at, do = _points(bench)[number]
        child = toy.start(folder, "--json", faults={"root": str(folder / "run"), "at": at, "do": do})
        if child.wait() != 137:
            raise Failure(f"operation {at} was not reached: {child.output()[-800:]}")
    _check_newest(folder / "run")
    toy.finish(folder, "--json")
    compare(whole, folder / "run")


def _toy(bench: Bench) -> Toy:
    return bench.toy(objective=bench.options.get("objective", "masked_lm"), **SMALL)


def _points(bench: Bench) -> list[tuple[int, str]]:
    """Return (operation, what to do) of each crash point, from the log of a run that nothing happens to."""
    log = bench.scratch / "operations.jsonl"
    if not log.exists():
        toy = Toy(bench.scratch, **SMALL)
        folder = toy.new_run(bench.scratch / "counted")
        toy.finish(folder, faults={"root": str(folder / "run"), "log": str(log)})
        shutil.rmtree(folder)
    kinds = [json.loads(line)[0] for line in log.read_text(encoding="utf-8").splitlines()]
    points = []
    for number, kind in enumerate(kinds, 1):
        points.append((number, "kill"))
        if kind == "write":
            points.append((number, "torn"))
    return points


def _check_newest(run: Path) -> None:
    """Fail where full checkpoints are there and the newest does not load: none is ever half, so none is passed over."""
    from seedbed.artifact import open_verified
    from seedbed.errors import SeedbedError

    for path in (run / "pretrain" / "checkpoints").glob("[!.]*"):
        try:
            open_verified(path, stage="checkpoint").verify()
        except SeedbedError as error:
            raise Failure(f"{path.name} was left damaged: {error.message}") from error


# --- by strace -----------------------------------------------------------------------------------------------------------


def _traced(bench: Bench) -> dict[str, int]:
    """Return how often a run does each call."""
    found = bench.scratch / "calls.json"
    if not found.exists():
        toy = Toy(bench.scratch, **SMALL)
        folder = toy.new_run(bench.scratch / "counted")
        log = bench.scratch / "strace.txt"
        _traced_child(toy, folder, _tracer(",".join(CALLS), "", log)).wait()
        lines = log.read_text(errors="replace").splitlines()
        counts = {
            calls: sum(re.search(rf"^\d+ +({calls.replace(',', '|')})\(", line) is not None for line in lines)
            for calls in CALLS
        }
        shutil.rmtree(folder)
        found.write_text(json.dumps(counts))
    return dict(json.loads(found.read_text()))


def _tracer(calls: str, inject: str, log: Path) -> list[str]:
    tracer = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", f"trace={calls}"]
    return [*tracer, "-e", inject] if inject else tracer


def _traced_child(toy: Toy, folder: Path, tracer: list[str]) -> Child:
    conditions = {"mutant": toy.mutant} if toy.mutant else {}
    return launch(
        ("pretrain", str(folder / "recipe.yaml"), "--json"),
        folder / "said.txt",
        conditions=conditions,
        launcher=tracer,
    )


def _kill_by_strace(bench: Bench, toy: Toy, folder: Path, number: int) -> None:
    for calls, there in _traced(bench).items():
        if number < there:  # trials count through all calls, kind by kind
            inject = f"inject={calls}:signal=KILL:when={number + 1}"
            _traced_child(toy, folder, _tracer(calls, inject, Path("/dev/null"))).wait()
            return
        number -= there


# --- mutants -------------------------------------------------------------------------------------------------------------


def _in_place() -> None:
    """Checkpoints are filled where they will stand, and the manifest comes first."""
    import contextlib

    from seedbed import artifact
    from seedbed.training import checkpoint

    @contextlib.contextmanager
    def publish(target, **options):
        target.mkdir(parents=True)
        draft = artifact.Draft(target)
        yield draft
        with artifact.publish(target.with_name(f".{target.name}.x"), **options) as inner:
            for path in target.iterdir():
                (inner.path / path.name).write_bytes(path.read_bytes())
        shutil.copy(inner.path.with_name(f".{target.name}.x") / "manifest.json", target / "manifest.json")
        shutil.rmtree(target.with_name(f".{target.name}.x"))

    checkpoint.publish = publish


def _old_first() -> None:
    """The checkpoint before is deleted before the new one is there."""
    from seedbed.training import checkpoint

    plain = checkpoint.Checkpoints._save_state

    def save(self, kind, state, extra):
        for path in self._listed("step"):
            shutil.rmtree(path)
        return plain(self, kind, state, extra)

    checkpoint.Checkpoints._save_state = save


MUTANTS = {"filled in place": _in_place, "old one deleted first": _old_first} | power.MUTANTS
