"""Take the power away: what remains of a run's folder is what was flushed, under two pessimistic readings.

While a run goes on, each flush of a file or a folder is written down with what it made durable. Then, for every such moment,
the folder is built as a disk might hold it: "nothing unflushed" has each file as at its last fsync and each folder's names as
at its own; "names without data" has all names as they were, and the data of files that were not flushed missing (empty), which
journalling file systems do. A real disk lies between the two.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.torture.toy_run import Toy

MODELS = ("nothing unflushed", "names without data")


def record(root: str, store: str) -> None:
    """Install the recorder in this process: states go to `store`, one folder each."""
    from tests.torture import faults

    recorder = _Recorder(Path(root).resolve(), Path(store))
    faults.install(root, after=recorder.hear)


class _Recorder:
    """Know what is durable, and write it down whenever it changed or something was named or removed."""

    def __init__(self, root: Path, store: Path) -> None:
        self.root, self.store = root, store
        self.data: dict[int, bytes] = {}  # content of each file as flushed, by inode
        self.names: dict[int, dict[str, Any]] = {}  # names of each folder as flushed, by inode
        self.number = 0
        self.kept: list[int] = []  # descriptors that keep inodes from being used again
        store.mkdir(parents=True)
        for folder, _, files in os.walk(root):
            self._flush_folder(Path(folder))
            for name in files:
                self._flush_file(Path(folder, name))

    def hear(self, kind: str, path: str, other: str) -> None:
        if kind == "fsync":
            where = Path(path)
            if where.is_dir():
                self._flush_folder(where)
            else:
                self._flush_file(where)
        if kind in ("fsync", "rename", "replace", "unlink", "rmdir", "symlink", "remove"):
            self._write_down()

    def _flush_file(self, path: Path) -> None:
        if not path.is_symlink():
            self.data[self._inode(path)] = path.read_bytes()

    def _flush_folder(self, path: Path) -> None:
        names: dict[str, Any] = {}
        for entry in os.scandir(path):
            if entry.is_symlink():
                names[entry.name] = os.readlink(entry.path)
            else:
                names[entry.name] = (self._inode(Path(entry.path)), entry.is_dir())
        self.names[self._inode(path)] = names

    def _inode(self, path: Path) -> int:
        number = path.stat().st_ino
        if number not in self.data and number not in self.names:
            self.kept.append(os.open(path, os.O_RDONLY))
        return number

    def _write_down(self) -> None:
        place = self.store / f"{self.number:05d}"
        self._build_flushed(self.root.stat().st_ino, place / "0")
        self._build_named(self.root, place / "1")
        self.number += 1

    def _build_flushed(self, inode: int, target: Path) -> None:
        target.mkdir(parents=True)
        for name, entry in self.names.get(inode, {}).items():
            if isinstance(entry, str):
                (target / name).symlink_to(entry)
            elif entry[1]:
                self._build_flushed(entry[0], target / name)
            else:
                (target / name).write_bytes(self.data.get(entry[0], b""))

    def _build_named(self, folder: Path, target: Path) -> None:
        target.mkdir(parents=True)
        for entry in os.scandir(folder):
            if entry.is_symlink():
                (target / entry.name).symlink_to(os.readlink(entry.path))
            elif entry.is_dir():
                self._build_named(Path(entry.path), target / entry.name)
            else:
                (target / entry.name).write_bytes(self.data.get(entry.stat().st_ino, b""))


def _states(toy: Toy) -> list[Path]:
    """Return the different states a disk may be left in, recorded once."""
    store = toy.folder / f"power {toy.mutant}"
    listed = toy.folder / f"power {toy.mutant}.json"
    if not listed.exists():
        shutil.rmtree(store, ignore_errors=True)
        folder = toy.folder / "recorded"
        shutil.rmtree(folder, ignore_errors=True)
        toy.new_run(folder)
        toy.finish(folder, hooks=[["power:record", {"root": str(folder / "run"), "store": str(store)}]])
        seen, states = set(), []
        for path in sorted(store.glob("*/*")):
            print_ = _fingerprint(path)
            if print_ not in seen:
                seen.add(print_)
                states.append(str(path))
        listed.write_text(json.dumps(states))
    return [Path(text) for text in json.loads(listed.read_text())]


def _fingerprint(folder: Path) -> tuple[Any, ...]:
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append((name, os.readlink(path)))
        else:
            found.append((name, path.read_bytes() if path.is_file() else None))
    return tuple(found)


def count(toy: Toy) -> int:
    """Return the number of different states."""
    return len(_states(toy))


def fail(toy: Toy, folder: Path, number: int) -> None:
    """Put one of the states in the place of the run's folder."""
    state = _states(toy)[number]
    shutil.rmtree(folder / "run")
    shutil.copytree(state, folder / "run", symlinks=True)


def _no_flush() -> None:
    """Nothing is flushed before it gets its name."""
    from seedbed import artifact

    artifact.flush_to_disk = lambda path: None


MUTANTS = {"not flushed": _no_flush}
