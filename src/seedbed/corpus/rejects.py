"""Name what was not kept, and why: one value for every rejected line, file and document.

`KINDS` is the closed list that counts, `rejects.jsonl` and docs/corpus.md use. No text of the input is ever part of a
reason, so a list of rejects may be shown to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["KINDS", "Reject", "Report", "summary"]

Level = Literal["line", "file", "document", "note"]

KINDS: dict[str, Level] = {
    # A physical line, row or record is bad; its neighbours are kept.
    "invalid_utf8": "line",
    "nul_byte": "line",
    "long_line": "line",
    "invalid_json": "line",
    "not_an_object": "line",
    "no_text": "line",
    "text_not_a_string": "line",
    "repeated_text_field": "line",
    "lone_surrogate": "line",
    "column_count": "line",
    "quote": "line",
    "damaged_rows": "line",
    # A file cannot be read, or not to its end; what stands before the damage is kept.
    "damaged_file": "file",
    "empty_file": "file",
    "no_text_field": "file",
    "not_a_file": "file",
    "unknown_format": "file",
    "unreadable": "file",
    "wrong_encoding": "file",
    "wrong_ending": "file",
    # A document was read well and left out.
    "duplicate": "document",
    "earlier": "document",
    "in_validation": "document",
    "short": "document",
    # Nothing was lost, and it should be known.
    "cut": "note",
}
"""Every kind of reject, and what is lost. `--strict` refuses lines and files; documents are left out by design."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Say what was not kept.

    Attributes:
        file: name of the source.
        line: 1-based physical line in the decompressed file (Parquet: row); 0 when the whole file is meant.
        kind: a key of `KINDS`.
        reason: a sentence for people, without any text of the input.
        byte_offset: position in the decompressed file where the fault stands, where known.
    """

    file: str
    line: int
    kind: str
    reason: str
    byte_offset: int | None = None

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def is_fault(self) -> bool:
        """Whether input was lost because it is bad, rather than left out by design."""
        return KINDS[self.kind] in ("line", "file")

    def as_json(self) -> dict[str, Any]:
        """Return the line of `rejects.jsonl`."""
        place: dict[str, Any] = {"file": self.file, "line": self.line}
        if self.byte_offset is not None:
            place["byte_offset"] = self.byte_offset
        return {**place, "kind": self.kind, "reason": self.reason}

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.reason}"


Report = Callable[[Reject], None]
"""Takes each reject as it is found; it is called on every bad line, so it must not keep them all in memory."""


def summary(rejects: Iterable[Reject]) -> str:
    """Return rejects as one line of an error message."""
    return "; ".join(str(reject) for reject in rejects)
