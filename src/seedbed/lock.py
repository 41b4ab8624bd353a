"""Give a run folder one owner at a time: a kernel file lock, freed by the kernel even when its owner is killed."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from seedbed.errors import DiskError, LockedError, disk_errors

__all__ = ["in_turn", "owned"]


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Own the run folder (made if missing) while the block runs.

    Raises:
        LockedError: another process owns it; names its process id and host.
        DiskError: the folder cannot be made or written, or its file system has no locks.
    """
    with disk_errors(run, doing="opening"):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # a place where no folder can be made, such as /proc
            raise DiskError(f"{run} cannot be created.", hint="choose another folder (run=...)") from error
        descriptor = os.open(run / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # the two a held lock gives, by system
            owner = _owner(descriptor)
            raise LockedError(
                f"{run} is in use by {owner}.",
                hint="wait for it to end, stop it, or choose another folder (run=...)",
            ) from error
        except OSError as error:
            raise DiskError(
                f"{run} lies on a file system without locks ({error.strerror}).",
                hint="choose a folder on a local disk (run=...)",
            ) from error
        with disk_errors(run, doing="writing"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let one process at a time run the block, the others wait; the file is made if missing and left there.

    Raises:
        DiskError: the file cannot be made, or its file system has no locks.
    """
    with disk_errors(path, doing="locking"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with disk_errors(path, doing="locking"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    """Return who holds the lock. A moment after it took it, the file may be empty, or still name who had it before."""
    owner = ""
    for _ in range(20):
        owner = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        named = re.fullmatch(r"process (\d+) on (.*)", owner)
        if named and (named[2] != platform.node() or psutil.pid_exists(int(named[1]))):
            break
        time.sleep(0.01)
    return owner or "another process"
