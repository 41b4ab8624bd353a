"""Find the files that inputs name, and open them: folders, globs, compression, and everything that is not a plain file.

Lines and records are taken out of an open file in `readers.py`.
"""

from __future__ import annotations

import glob
import gzip
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast

import zstandard

from seedbed.corpus.rejects import Reject, Report
from seedbed.errors import DataError

__all__ = [
    "FORMATS",
    "ByteStream",
    "Format",
    "Source",
    "WrongEndingError",
    "find_sources",
    "format_of",
    "is_whole_zstd",
    "open_source",
]

Format = Literal["txt", "jsonl", "csv", "tsv", "parquet"]
FORMATS: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""Formats by file name ending; each may be followed by .gz or .zst."""

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read.

    Attributes:
        name: its path relative to the input that named it: what documents, rejects and the trail call it.
        path: where it is.
        format: how its records are told apart.
    """

    name: str
    path: Path
    format: Format

    @property
    def compression(self) -> Literal["gz", "zst", None]:
        """How the file is compressed, by its ending."""
        endings: dict[str, Literal["gz", "zst"]] = {".gz": "gz", ".zst": "zst"}
        return endings.get(self.path.suffix.lower())


class ByteStream(Protocol):
    """What lines are read from: `read1` gives some bytes, at most `size`, and none at the end."""

    def read1(self, size: int = ..., /) -> bytes:
        """Return up to `size` bytes."""


def find_sources(inputs: Sequence[str], *, format: str, report: Report) -> list[Source]:
    """Return the readable files that inputs name, sorted by name, each file once.

    Args:
        inputs: files, folders (walked, hidden entries skipped) and globs, relative to the working folder; `~` is expanded.
        format: a format for all files, or "auto" to go by their endings.
        report: is told of everything found that is not a readable file of a known format.

    Raises:
        DataError: an input matches nothing.
    """
    found: dict[str, tuple[str, str]] = {}  # real path -> (short name, path as given)
    for given in inputs:
        expanded = os.path.expanduser(given)
        names = list(_matches(expanded))
        if not names:
            what = "is an empty folder" if os.path.isdir(expanded) else "matches no file or folder"
            raise DataError(
                f"input {given!r} {what}.", hint=f"check the path; the working folder is {os.getcwd()}"
            )
        for name, path in names:
            real = os.path.realpath(path)
            found[real] = min(found.get(real, (name, path)), (name, path))

    # Two files of one short name are told apart by the paths as given.
    times: dict[str, int] = {}
    for name, _ in found.values():
        times[name] = times.get(name, 0) + 1
    named = sorted((_printable(name if times[name] == 1 else path), path) for name, path in found.values())
    return [
        source for name, path in named if (source := _source(name, Path(path), format, report)) is not None
    ]


def _printable(name: str) -> str:
    """Return a name that UTF-8 can hold: file systems also allow names that are not valid UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _matches(given: str) -> Iterator[tuple[str, str]]:
    """Yield (name relative to the input, path) of everything an input names."""
    if os.path.isdir(given):
        yield from _walk(given, given, set())
    elif os.path.lexists(given):
        yield os.path.basename(given), given
    elif glob.has_magic(given):
        base = given
        while glob.has_magic(base):
            base = os.path.dirname(base)
        for path in glob.glob(given, recursive=True):
            if os.path.isdir(path):
                yield from _walk(path, base or ".", set())
            else:
                yield os.path.relpath(path, base or "."), path


def _walk(folder: str, base: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield every visible file below a folder; links to folders are followed, each real folder once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    itself = os.path.relpath(folder, base) if folder != base else os.path.basename(real)
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        yield itself, folder  # reported as unreadable
        return
    if not names and format_of(folder) is not None:
        yield itself, folder  # an empty folder called x.txt stands in place of that file
    for name in sorted(names):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from _walk(path, base, seen)
        else:
            yield os.path.relpath(path, base), path


def format_of(path: str) -> Format | None:
    """Return the format that a file's ending says, below .gz and .zst, or None."""
    stem, ending = os.path.splitext(path.lower())
    if ending in (".gz", ".zst"):
        ending = os.path.splitext(stem)[1]
    return FORMATS.get(ending)


def _source(name: str, path: Path, format: str, report: Report) -> Source | None:
    """Return the source if it is a readable plain file of a known format, else report why not."""
    kind, reason = "", ""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind, reason = "not_a_file", f"a {_what(mode)} stands in place of a file"
        elif not os.access(path, os.R_OK):
            kind, reason = "unreadable", "no permission to read it"
        elif path.stat().st_size == 0:
            kind, reason = "empty_file", "the file is empty"
    except OSError as error:
        dangling = path.is_symlink() and isinstance(error, FileNotFoundError)
        kind = "not_a_file" if dangling else "unreadable"
        reason = "a link to a file that does not exist" if dangling else f"cannot be read: {error.strerror}"
    known = format_of(str(path)) if format == "auto" else format
    if not kind and known is None:
        endings = ", ".join(FORMATS)
        kind, reason = (
            "unknown_format",
            f"the ending says no format (known: {endings}, also with .gz or .zst)",
        )
    if kind:
        report(Reject(name, 0, kind, reason))
        return None
    assert known is not None
    return Source(name, path, cast(Format, known))


def _what(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "named pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


@contextmanager
def open_source(source: Source) -> Iterator[tuple[ByteStream, BinaryIO]]:
    """Open a source for reading decompressed bytes.

    Yields:
        The decompressed stream, and the raw file below it, whose position says how far reading is.

    Raises:
        OSError: the file cannot be opened or read.
        WrongEndingError: the first bytes are not what the ending says.
    """
    with source.path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        found = "gz" if magic[:2] == _GZIP_MAGIC else "zst" if magic == _ZSTD_MAGIC else None
        if found != source.compression:
            stated = source.compression
            raise WrongEndingError(
                f"the ending says .{stated}, the content is not" if stated else f"the content is .{found}"
            )
        if source.compression == "gz":
            with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                yield stream, raw
        elif source.compression == "zst":
            decompressor = zstandard.ZstdDecompressor()
            with decompressor.stream_reader(raw, read_across_frames=True, closefd=False) as reader:
                yield reader, raw
        else:
            yield raw, raw


class WrongEndingError(Exception):
    """A file's first bytes contradict its ending."""


def is_whole_zstd(raw: BinaryIO) -> bool:
    """Say whether a .zst file ends where a frame ends, by walking its block headers.

    python-zstandard 0.25 ends its stream without an error when the file stops in the middle of a frame.
    Only called when decompression met no error, so every header in front of the end is sound. Format: RFC 8878, 3.1.
    """
    size = raw.seek(0, os.SEEK_END)
    at = 0
    while at < size:
        raw.seek(at)
        head = raw.read(18)
        if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # skippable frame
            at += 8 + int.from_bytes(head[4:8], "little")
            continue
        try:
            has_checksum = zstandard.get_frame_parameters(head).has_checksum
            at += zstandard.frame_header_size(head)
        except zstandard.ZstdError:
            return False
        is_last = False
        while not is_last:
            raw.seek(at)
            block = raw.read(3)
            if len(block) < 3:
                return False
            header = int.from_bytes(block, "little")
            is_last, is_run = bool(header & 1), header >> 1 & 3 == 1
            at += 3 + (1 if is_run else header >> 3)
        at += 4 if has_checksum else 0
    return at == size
