"""Every item of the torture programme for a few seconds, and each of its mutants, which it must catch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import seedbed

ROOT = Path(__file__).resolve().parents[2]
ITEMS = [
    ["kill"],
    ["crash_points"],
    ["crash_points", "--power"],
    ["signals"],
    ["disk"],
    ["numeric"],
    ["bit_flips"],
    ["locks"],
    ["elastic"],
    ["goodput"],
    ["worker"],
]
MUTANTS = [
    ["kill", "other dropout"],
    ["kill", "moments lost"],
    ["crash_points", "filled in place"],
    ["crash_points", "old one deleted first"],
    ["crash_points", "not flushed", "--power", "--trials", "20"],
    ["signals", "nothing saved", "--trials", "12"],
    ["signals", "dies at once"],
    ["disk", "errors untold"],
    ["disk", "failed flushes ignored"],
    ["numeric", "applied anyway"],
    ["numeric", "window forgotten"],
    ["bit_flips", "nothing hashed"],
    ["locks", "no lock"],
    ["elastic", "rows twice"],
    ["goodput", "moments lost"],
    ["worker", "no comparison"],
]

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def torture() -> Iterator[Callable[[list[str]], dict[str, Any]]]:
    """A process that has imported torch once, and forks an item for each line it is given."""
    paths = [str(ROOT), str(Path(seedbed.__file__).parent.parent)]
    scratch = tempfile.mkdtemp(
        prefix="seedbed-torture-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.torture", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(words: list[str]) -> dict[str, Any]:
        process.stdin.write(json.dumps([*words, "--short", "--scratch", str(scratch)]) + "\n")
        process.stdin.flush()
        result = json.loads(process.stdout.readline())
        if "id" in result:
            result |= json.loads(process.stdout.readline())
        return result

    yield run
    process.stdin.close()
    process.wait(timeout=60)
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.parametrize("words", ITEMS, ids=" ".join)
def test_survives(torture, words, capfd):
    result = torture(words)
    assert result["exit"] == 0, (result, capfd.readouterr().err[-3000:])
    assert result["trials"] >= 1
    assert result["failures"] == 0


@pytest.mark.parametrize("words", MUTANTS, ids=" ".join)
def test_catches(torture, words):
    name, mutant, *rest = words
    result = torture([name, "--mutant", mutant, *rest])
    assert result["exit"] == 1, f"{name} does not notice that {mutant}"
    assert result["failures"] == 1


def test_every_item_is_here_and_has_a_mutant():
    files = {path.stem for path in Path(__file__).parent.glob("*.py")}
    shared = {"__init__", "__main__", "children", "faults", "power", "test_short_tier", "toy_run", "trials"}
    assert {words[0] for words in ITEMS} == {words[0] for words in MUTANTS} == files - shared
