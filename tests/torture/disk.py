"""Fill the disk, forbid it, let it fail: at every write of every stage, and the same command afterwards ends as if nothing had been.

Each trial runs one stage alone with an error at one of its file operations: no space (which then stays), an I/O error in a
flush or in closing a file. Further trials have a limit on the size of files, and a folder that cannot be written. `--tmpfs`
mounts real file systems of thirty sizes instead, which fill up under libraries' own writing too (needs `unshare -rm`).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.torture.children import Child, launch
from tests.torture.toy_run import STAGES, Failure, Toy, compare
from tests.torture.trials import Bench

LONG, SHORT = None, None
SMALL = {"budget_steps": 6, "checkpoint_steps": 2, "validation_steps": 3, "checkpoint_minutes": 1000.0}
VERBS = ("corpus", "tokenizer", "tokens", "pretrain")
SIZES = 30


def count(bench: Bench) -> int:
    """Return the number of trials."""
    return SIZES if bench.options.get("tmpfs") else len(_points(bench))


def trial(bench: Bench, number: int) -> None:
    """Let the disk fail once, look at what is said, then run the same command again and compare."""
    toy = bench.toy(**SMALL)
    whole = toy.reference()
    if bench.options.get("tmpfs"):
        _fill_tmpfs(bench, toy, number)
        return
    verb, at, fault = _points(bench)[number]
    folder = _run_before(toy, bench.scratch / "trial", verb)
    if at:
        child = toy.start(
            folder, verb=verb, faults={"root": str(folder / "run"), "at": at, "do": "error", **fault}
        )
    else:
        child = toy.start(folder, verb=verb, hooks=[["disk:limit", {"root": str(folder / "run"), **fault}]])
    child.wait()
    if "bytes_of_file" in fault:
        time.sleep(0.1)  # its last words are on their way
    # A file that is closed may have been flushed before, and a limit may be large enough.
    _check(child, folder, is_optional=fault.get("kinds") == ["close"] or "bytes_of_file" in fault)
    for later in VERBS[VERBS.index(verb) :]:
        toy.finish(folder, verb=later)
    _check_stages(whole, folder / "run")
    compare(whole, folder / "run")


def _check(child: Child, folder: Path, *, is_optional: bool = False) -> None:
    """Fail where a run that lacked a disk did not say so, in one message with a path."""
    said = child.output()
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    if child.code == 0 and is_optional:
        return
    if child.code != 6 or "Traceback" in said or len(errors) != 1:
        raise Failure(f"exit code {child.code}, not 6: {said[-1200:]}")
    if str(folder) not in errors[0]:
        raise Failure(f"no path in {errors[0]!r}")
    full = "No space left" in said or "File too large" in said
    if full and "free" not in errors[0]:
        raise Failure(f"what is free is not said: {errors[0]!r}")
    for path in (folder / "run" / "pretrain" / "checkpoints").glob("[!.]*"):
        from seedbed.artifact import open_verified
        from seedbed.errors import SeedbedError

        try:
            open_verified(path).verify()
        except SeedbedError as error:
            raise Failure(f"a damaged checkpoint was left: {error.message}") from error


def _check_stages(whole: Path, run: Path) -> None:
    for stage in STAGES:
        digests = [
            json.loads((place / stage / "manifest.json").read_text())["digest"] for place in (whole, run)
        ]
        if digests[0] != digests[1]:
            raise Failure(f"{stage} differs")


def _points(bench: Bench) -> list[tuple[str, int, dict[str, Any]]]:
    """Return (stage, operation, fault) of each trial, from the logs of stages that nothing happens to."""
    found = bench.scratch / "disk-points.json"
    if not found.exists():
        toy = Toy(bench.scratch, **SMALL)
        toy.stages()
        points: list[tuple[str, int, dict[str, Any]]] = []
        for verb in VERBS:
            folder = _run_before(toy, bench.scratch / "counted", verb)
            log = bench.scratch / "disk.jsonl"
            log.unlink(missing_ok=True)
            toy.finish(folder, verb=verb, faults={"root": str(folder / "run"), "log": str(log)})
            kinds = [json.loads(line)[0] for line in log.read_text(encoding="utf-8").splitlines()]
            for number, kind in enumerate(kinds, 1):
                if kind in ("write", "create", "mkdir", "link", "symlink"):
                    points.append((verb, number, {"number": errno.ENOSPC, "is_sticky": True}))
            for kind in ("fsync", "close"):
                for number in range(1, kinds.count(kind) + 1):
                    points.append((verb, number, {"number": errno.EIO, "kinds": [kind]}))
            points += [(verb, 0, {"bytes_of_file": size}) for size in (0, 100, 700, 5000)]
            points.append((verb, 0, {"is_read_only": True}))
            shutil.rmtree(folder)
        found.write_text(json.dumps(points))
    all_points = [(verb, at, fault) for verb, at, fault in json.loads(found.read_text())]
    return _few(all_points) if bench.is_short else all_points


def _few(points: list[tuple[str, int, dict[str, Any]]]) -> list[tuple[str, int, dict[str, Any]]]:
    """Return one point of each kind of fault, of two stages."""
    groups: dict[str, list[tuple[str, int, dict[str, Any]]]] = {}
    for point in points:
        if point[0] in ("tokens", "pretrain"):
            kind = json.dumps([point[0], sorted(point[2]), point[2].get("kinds")])
            groups.setdefault(kind, []).append(point)
    return [group[2 * len(group) // 3] for group in groups.values()]


def _run_before(toy: Toy, folder: Path, verb: str) -> Path:
    """Return a run folder that has the stages before this one."""
    toy.new_run(folder, has_stages=False)
    (folder / "run").mkdir()
    for stage in VERBS[: VERBS.index(verb)]:
        (folder / "run" / stage).symlink_to((toy.stages() / stage).resolve(), target_is_directory=True)
    return folder


def limit(root: str, bytes_of_file: int = 0, is_read_only: bool = False) -> None:
    """Forbid this process to write files over a size, or to write below a folder at all."""
    import resource
    import signal
    import subprocess

    if is_read_only:
        from tests.torture import faults

        def refuse(self: Any, kind: str, path: str, other: str = "", *, half: Any = None) -> None:
            if path.startswith(self.root) and not path.endswith(".lock"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

        faults.Faults.meet = refuse
        faults.install(root)
        return
    # What is said goes through a pipe: the file it ends in must not be limited.
    teller = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert teller.stdin is not None
    for descriptor in (1, 2):
        os.dup2(teller.stdin.fileno(), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# --- real file systems ---------------------------------------------------------------------------------------------------


def _fill_tmpfs(bench: Bench, toy: Toy, number: int) -> None:
    """Run everything in a file system too small for it; make it large, and go on."""
    folder = toy.new_run(bench.scratch / "trial", has_stages=False)
    (folder / "run").mkdir()
    needed = sum(p.stat().st_size // 4096 + 1 for p in toy.reference().rglob("*") if p.is_file()) * 4
    size = max(8, needed * (number + 1) // SIZES)
    script = (
        f"mount -t tmpfs -o size={size}k,nr_inodes=10000 none {folder / 'run'} && "
        f'"$@"; code=$?; [ $code = 6 ] || [ $code = 0 ] || exit $code; '
        f'df -k {folder / "run"} >&2; mount -o remount,size=100m {folder / "run"} && "$@" && '
        f"cp -a {folder / 'run'} {folder / 'copy'} && exit $((100 + code))"
    )
    child = launch(
        ("run", str(folder / "recipe.yaml")),
        folder / "said.txt",
        launcher=("unshare", "-rm", "sh", "-c", script, "sh"),
        conditions={"mutant": toy.mutant} if toy.mutant else {},
    )
    code = child.wait(300)
    said = child.output()
    if code not in (100, 106) or "Traceback" in said:
        raise Failure(f"exit code {code} with {size} KiB: {said[-1500:]}")
    if code == 106 and len([line for line in said.splitlines() if line.startswith("error:")]) != 1:
        raise Failure(f"not one message: {said[-1500:]}")
    (folder / "run").rmdir()
    (folder / "copy").rename(folder / "run")
    _check_stages(toy.reference(), folder / "run")
    compare(toy.reference(), folder / "run")


# --- mutants -------------------------------------------------------------------------------------------------------------


def _errors_untold() -> None:
    """What the system says is passed on as it is, and looks like a bug of ours."""
    import contextlib

    from seedbed import artifact, lock
    from seedbed.commands import pretraining
    from seedbed.training import hooks, row_record

    for module in (artifact, lock, pretraining, hooks, row_record):
        module.disk_errors = lambda path, **options: contextlib.nullcontext()


def _errors_ignored() -> None:
    """A flush that fails is taken for one that went well."""
    import contextlib

    from seedbed import artifact

    plain = artifact.flush_to_disk

    def flush(path: Path) -> None:
        with contextlib.suppress(OSError):
            plain(path)

    artifact.flush_to_disk = flush


MUTANTS = {"errors untold": _errors_untold, "failed flushes ignored": _errors_ignored}
