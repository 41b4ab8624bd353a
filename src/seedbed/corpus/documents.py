"""Join the lines of a file to clean documents: normalised, cut where the file says, never longer than allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from seedbed.corpus.lines import Line, Tick
from seedbed.corpus.normalize import UnicodeForm, normalizer
from seedbed.corpus.readers import END, Limits, read_source
from seedbed.corpus.rejects import Reject, Report
from seedbed.corpus.sources import Source
from seedbed.document import Document

__all__ = ["Reading", "Separator", "documents_of"]

Separator = Literal["blank_line", "file", "line"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Say how a file becomes documents.

    Attributes:
        limits: how records are found; a document is at most `limits.max_record_bytes` long.
        separator: what separates documents in .txt files. Records of other formats are documents.
        unicode_form: Unicode form of the result.
    """

    limits: Limits
    separator: Separator
    unicode_form: UnicodeForm


def documents_of(
    source: Source, reading: Reading, report: Report, tick: Tick = lambda _: None
) -> Iterator[Document]:
    """Yield the clean documents of one file, and report what was not kept."""
    num_rejects = num_documents = 0

    def counted(reject: Reject) -> None:
        nonlocal num_rejects
        num_rejects += 1
        report(reject)

    lines = read_source(source, reading.limits, counted, tick)
    for document in _assemble(lines, source, reading, counted):
        num_documents += 1
        yield document
    if not num_documents and not num_rejects:
        report(Reject(source.name, 0, "empty_file", "the file holds no text"))


def _assemble(lines: Iterator[Line], source: Source, reading: Reading, report: Report) -> Iterator[Document]:
    """Join normalised lines, beginning another document at a line end where one would grow too long."""
    normalize = normalizer(reading.unicode_form)
    longest = reading.limits.max_record_bytes
    ends_at_blank = source.format == "txt" and reading.separator == "blank_line"
    ends_at_line = source.format == "txt" and reading.separator == "line"
    kept: list[str] = []
    numbers: list[int] = []
    size = 0
    for line in lines:
        number, raw = line
        text = normalize(raw)
        if text:
            length = len(text) if text.isascii() else len(text.encode("utf-8"))
            if kept and size + length > longest:
                reason = f"the document is longer than max_document_bytes = {longest}; another begins here"
                report(Reject(source.name, number, "cut", reason))
                yield Document("\n".join(kept), source.name, tuple(numbers))
                kept, numbers, size = [], [], 0
            kept.append(text)
            numbers.append(number)
            size += length + 1
            if not ends_at_line:
                continue
        elif not (ends_at_blank or line is END):
            continue
        if kept:
            yield Document("\n".join(kept), source.name, tuple(numbers))
            kept, numbers, size = [], [], 0
    if kept:
        yield Document("\n".join(kept), source.name, tuple(numbers))
