"""Define the exception family and the process exit codes.

    SeedbedError                exit 1   (our own bug, when nothing below fits)
    |-- ConfigError             exit 2   a recipe, an override or a command line is wrong
    |-- DependencyError         exit 2   an optional package is missing; names the extra to install
    |-- DataError               exit 3   bad input: a file, a line, an encoding
    |   `-- TaskError           exit 3   a labelled data set does not fit its task
    |-- MemoryLimitError        exit 4   the work does not fit the memory allowed
    |-- NumericError            exit 5   training met non-finite numbers it could not step over
    |-- DiskError               exit 6   disk full, folder unwritable
    |-- LockedError             exit 7   another process owns the run
    |-- IntegrityError          exit 8   an artifact is damaged, unfinished or was changed
    |-- IncompatibleError       exit 9   stage mismatch, wrong tokenizer, objective and model do not fit
    `-- WorkerLostError         exit 10  another worker of the run died or hangs; start again, it goes on

    SIGINT                      exit 130
    SIGTERM                     exit 143

A message says what was found, with the value and the place; the hint says what to do.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "ConfigError",
    "DataError",
    "DependencyError",
    "DiskError",
    "IncompatibleError",
    "IntegrityError",
    "LockedError",
    "MemoryLimitError",
    "NumericError",
    "SeedbedError",
    "TaskError",
    "WorkerLostError",
    "disk_errors",
]


class SeedbedError(Exception):
    """Report a problem the user can act on: what was found and where, and a hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message


class ConfigError(SeedbedError):
    """A recipe, an override or a command line is wrong."""

    exit_code = 2


class DependencyError(SeedbedError):
    """An optional package is missing."""

    exit_code = 2

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed.",
            hint=f"pip install 'seedbed[{extra}]'",
        )


class DataError(SeedbedError):
    """An input file, line or encoding is bad."""

    exit_code = 3


class TaskError(DataError):
    """A labelled data set does not fit its task."""


class MemoryLimitError(SeedbedError):
    """The work does not fit the memory allowed."""

    exit_code = 4


class NumericError(SeedbedError):
    """Training met non-finite numbers it could not step over."""

    exit_code = 5


class DiskError(SeedbedError):
    """The disk is full or a folder cannot be written."""

    exit_code = 6


class LockedError(SeedbedError):
    """Another process owns the run."""

    exit_code = 7


class IntegrityError(SeedbedError):
    """An artifact is damaged, unfinished or was changed after it was published."""

    exit_code = 8


class IncompatibleError(SeedbedError):
    """Two things do not fit: a stage and its inputs, a tokenizer and a model, an objective and a model."""

    exit_code = 9


class WorkerLostError(SeedbedError):
    """Another worker of a run on several processes died or hangs."""

    exit_code = 10


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_errors(path: Path | str, *, doing: str, needed_bytes: int = 0) -> Iterator[None]:
    """Turn the operating system's write errors at `path` into one clear `DiskError`.

    Where the disk is full it says how much is free, and how much is needed where the caller knows (`needed_bytes`).

    Only full disks, quotas, size limits, read-only and forbidden folders and plain I/O errors are translated;
    any other `OSError` passes, since it says something else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            needed = f"{needed_bytes:,} bytes are needed, " if needed_bytes else ""
            raise DiskError(
                f"{doing} {path}: no space left ({error.strerror}); {needed}{_free_bytes(path)}.",
                hint="free some disk space and run the same command again; nothing finished is lost",
            ) from error
        if error.errno in _UNWRITABLE:
            raise DiskError(
                f"{doing} {path}: the folder cannot be written ({error.strerror}).",
                hint="choose another folder (run=...) or change its permissions",
            ) from error
        if error.errno == errno.EIO:
            raise DiskError(
                f"{doing} {path}: the disk reports an I/O error.",
                hint="check the disk, then run the same command again",
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise DiskError(
                f"{doing} {path}: a file stands where a folder is needed ({error.strerror}).",
                hint="choose another folder (run=...)",
            ) from error
        raise


def _free_bytes(path: Path | str) -> str:
    """Say how much the file system of a path, which need not be there, has left."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return f"{shutil.disk_usage(place).free:,} are free"
    except OSError:
        return "how many are free is not known"
