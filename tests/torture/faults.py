"""Make the file operations of this process fail, or kill it at one of them: no root, no tracer, no waiting for chance.

`install` replaces what Python's file operations go through: the functions of `os`, and `open`, whose raw layer then sees every
single write, as the kernel would. Each operation below a folder is counted and may be logged; the one that was asked for kills
the process (before it, or in the middle of a write), fails with an error of the system's, or raises a signal. Files that
libraries write by themselves count as one operation (safetensors) or not at all (Arrow): for those there are strace and real
file systems, `crash_points --strace` and `disk --tmpfs`.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("mkdir", "rename", "replace", "link", "symlink", "unlink", "remove", "rmdir", "truncate")


class Faults:
    """Count operations below `root`, and act at operation `at` (from 1).

    Args:
        root: the folder that counts.
        at: which operation; 0: none.
        do: "kill" (before it), "torn" (half of a write, then kill), "error", "signal" or "call".
        number: of the error or the signal.
        kinds: operations that count; all when empty.
        within: what a path must hold to count.
        is_sticky: the error stays for all operations that need space: a disk that is full.
        log: a file outside the root that gets a JSON line an operation.
        before: called with each operation before it is done.
        after: called with each operation once it was done.
    """

    def __init__(
        self,
        root: str,
        *,
        at: int = 0,
        do: str = "kill",
        number: int = 0,
        kinds: tuple[str, ...] = (),
        within: str = "",
        is_sticky: bool = False,
        log: str = "",
        after: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self.root = os.path.realpath(root)
        self.at, self.do, self.number = at, do, number
        self.kinds, self.within, self.is_sticky = tuple(kinds), within, is_sticky
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else -1
        self.after = after
        self.count = 0
        self.has_struck = False
        self.pid = os.getpid()

    def meet(self, kind: str, path: str, other: str = "", *, half: Callable[[], None] | None = None) -> None:
        """Count an operation that is about to be done, and strike if its turn has come."""
        if os.getpid() != self.pid or not path.startswith(self.root):
            return
        if (self.kinds and kind not in self.kinds) or self.within not in path + "\0" + other:
            return
        self.count += 1
        if self.log >= 0:
            line = [
                kind,
                os.path.relpath(path, self.root),
                os.path.relpath(other, self.root) if other else "",
            ]
            os.write(self.log, (json.dumps(line) + "\n").encode())
        strikes = self.count == self.at or (
            self.is_sticky and self.has_struck and kind not in ("unlink", "remove", "rmdir", "fsync", "close")
        )
        if not strikes:
            return
        self.has_struck = True
        if self.do == "signal":
            os.kill(os.getpid(), self.number)
        elif self.do == "error":
            raise OSError(self.number, os.strerror(self.number), path)
        else:
            if self.do == "torn" and half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def done(self, kind: str, path: str, other: str = "") -> None:
        """Hear that an operation was done."""
        if self.after is not None and os.getpid() == self.pid and path.startswith(self.root):
            self.after(kind, path, other)


def install(root: str, **options: Any) -> Faults:
    """Put faults into effect in this process."""
    faults = Faults(root, **options)
    for name in NAMES:
        _patch_path_function(faults, name)
    _patch_descriptor_functions(faults)
    _patch_open(faults)
    _patch_safetensors(faults)
    return faults


def _absolute(path: Any, folder: Any = None) -> str:
    """Return the real folder of a path and its name: links on the way are followed, the last one is not."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
    head, tail = os.path.split(os.path.join(base, text))
    return os.path.join(os.path.realpath(head), tail)


def _patch_path_function(faults: Faults, name: str) -> None:
    plain = getattr(os, name)
    targets_second = name in ("rename", "replace", "link", "symlink")

    def patched(first: Any, *rest: Any, **named: Any) -> Any:
        if targets_second:
            path = _absolute(rest[0], named.get("dst_dir_fd"))
            other = "" if name == "symlink" else _absolute(first, named.get("src_dir_fd"))
        else:
            path, other = _absolute(first, named.get("dir_fd")), ""
        faults.meet(name, path, other)
        result = plain(first, *rest, **named)
        faults.done(name, path, other)
        return result

    setattr(os, name, patched)
    for capable in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if plain in capable:  # shutil asks these sets
            capable.add(patched)


def _patch_descriptor_functions(faults: Faults) -> None:
    plain_fsync, plain_open = os.fsync, os.open

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = _absolute(number)
        faults.meet("fsync", path)
        plain_fsync(descriptor)
        faults.done("fsync", path)

    def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return plain_open(path, flags, *rest, **named)
        where = _absolute(path, named.get("dir_fd"))
        faults.meet("create", where)
        descriptor = plain_open(path, flags, *rest, **named)
        faults.done("create", where)
        return descriptor

    os.fsync, os.open = fsync, opened
    if plain_open in os.supports_dir_fd:
        os.supports_dir_fd.add(opened)


def _patch_open(faults: Faults) -> None:
    plain = io.open

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            where = _absolute(self.fileno())
            rest = memoryview(data).cast("B")
            if faults.do == "error" and faults.count + 1 == faults.at and len(rest) > 1 and not faults.kinds:
                # As the kernel does: what fits is written, and the next call fails
                return super().write(rest[: len(rest) // 2]) or 0
            faults.meet("write", where, half=lambda: io.FileIO.write(self, rest[: len(rest) // 2]) and None)
            number = super().write(data)
            faults.done("write", where)
            return number

        def close(self) -> None:
            if not self.closed and self.writable():
                where = _absolute(self.fileno())
                try:
                    faults.meet("close", where)
                finally:
                    super().close()
            else:
                super().close()

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return plain(file, mode, buffering, *rest, **named)
        where = _absolute(file)
        if not where.startswith(faults.root):
            return plain(file, mode, buffering, *rest, **named)
        if "w" in mode or not os.path.exists(where):
            faults.meet("create", where)
        raw = Raw(where, mode.replace("b", "").replace("t", ""))
        faults.done("create", where)
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        names = ("encoding", "errors", "newline")
        text = io.TextIOWrapper(buffered, **dict(zip(names, rest, strict=False)), **named)
        text.mode = mode
        return text

    builtins.open = io.open = opened


def _patch_safetensors(faults: Faults) -> None:
    from seedbed import tensors

    plain = tensors.save_file

    def save_file(values: Any, path: Any, metadata: Any = None) -> None:
        where = _absolute(path)

        def half() -> None:
            plain(values, path, metadata=metadata)
            with io.FileIO(where, "r+") as file:
                file.truncate(Path(where).stat().st_size // 2)

        faults.meet("write", where, half=half)
        plain(values, path, metadata=metadata)
        faults.done("write", where)

    tensors.save_file = save_file
