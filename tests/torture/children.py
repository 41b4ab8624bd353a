"""Run `seedbed` in child processes: forked from this one, where torch is imported already, or started anew.

The process that forks never computes: it has one thread and no operation of torch done, so that a child begins as a fresh
interpreter would. What a child is to suffer (`faults.py`) and by what its seedbed is broken (a mutant) travels as a plain
mapping, the same in both ways.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_alive: list[Child] = []
"""Those started and not yet seen to end, so that a trial that fails leaves none behind."""


class Child:
    """A running `seedbed` command; `said` is where its output goes."""

    def __init__(self, pid: int, said: Path, *, is_group: bool = False) -> None:
        self.pid = pid
        self.said = said
        self.code: int | None = None
        self.is_group = is_group  # it leads a group of processes, which are killed with it
        _alive.append(self)

    def poll(self) -> int | None:
        """Return the exit code as a shell tells it (128 + signal), or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.code = 128 - self.code if self.code < 0 else self.code
                _alive.remove(self)
        return self.code

    def wait(self, seconds: float = 1800.0) -> int:
        """Wait for the end; a child that takes longer is killed, and that is an error."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"a child ran for over {seconds:.0f} seconds: {self.output()[-400:]}")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        if self.is_group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.send(signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.001)

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        """Return all it said."""
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


def end_all() -> None:
    """Kill every child that still runs."""
    for child in list(_alive):
        child.kill()


def fork(
    words: Sequence[str],
    said: Path,
    *,
    conditions: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `seedbed WORDS` in a fork of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, said)
    code = 99
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(environment or {})
        code = _run(words, conditions or {})
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def launch(
    words: Sequence[str],
    said: Path,
    *,
    conditions: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    launcher: Sequence[str] = (),
) -> Child:
    """Start `seedbed WORDS` in a fresh interpreter, as a user does."""
    program = ["seedbed"] if not conditions else ["tests.torture.children", json.dumps(dict(conditions))]
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    with said.open("ab") as output:
        process = subprocess.Popen(
            [*launcher, sys.executable, "-m", *program, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), **(environment or {})},
        )
    process.returncode = 0  # the child is waited for by `Child`
    return Child(process.pid, said, is_group=True)


def _run(words: Sequence[str], conditions: Mapping[str, Any]) -> int:
    """Put the conditions into effect, then run the command."""
    from seedbed.cli import main

    if mutant := conditions.get("mutant"):
        item, name = mutant
        importlib.import_module(f"tests.torture.{item}").MUTANTS[name]()
    for hook, options in conditions.get("hooks", []):
        module, _, function = hook.partition(":")
        getattr(importlib.import_module(f"tests.torture.{module}"), function)(**options)
    if faults := conditions.get("faults"):
        from tests.torture.faults import install

        install(**faults)
    return main(list(words))


if __name__ == "__main__":
    sys.exit(_run(sys.argv[2:], json.loads(sys.argv[1])))
