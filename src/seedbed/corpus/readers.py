"""Take the text out of the records of each format, one record at a time, and report every one that is bad.

Which files there are is decided in `sources.py`, physical lines are cut in `lines.py`, documents made in `documents.py`.
"""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from seedbed.corpus.lines import Line, Tick, read_lines
from seedbed.corpus.rejects import Reject, Report
from seedbed.corpus.sources import ByteStream, Source, WrongEndingError, open_source
from seedbed.errors import disk_errors

__all__ = ["END", "Limits", "delimited_fields", "read_source"]

END: Line = (0, "")
"""Stands after the last line of each record."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How records are found and how long they may be.

    Attributes:
        text_field: name of the field, column or key that holds the text.
        max_line_bytes: a longer physical line is reported and never held in memory.
        max_record_bytes: a longer quoted CSV record counts as an open quote.
    """

    text_field: str = "text"
    max_line_bytes: int = 16 << 20
    max_record_bytes: int = 16 << 20


def read_source(source: Source, limits: Limits, report: Report, tick: Tick) -> Iterator[Line]:
    """Yield the lines of one file; in formats with records, `END` follows the lines of each record.

    Every fault is reported; what is good on either side of it is yielded. `tick` is told how many bytes of the file have
    been read.
    """
    try:
        with open_source(source) as (stream, raw):
            if source.format == "parquet":
                yield from _parquet_rows(source, stream, raw, limits, report)
                return
            lines = read_lines(source.name, stream, raw, limits.max_line_bytes, report, tick)
            if source.format == "txt":
                yield from lines
            elif source.format == "jsonl":
                yield from _json_records(source.name, lines, limits, report)
            else:
                yield from _csv_records(source, lines, limits, report)
    except WrongEndingError as error:
        report(Reject(source.name, 0, "wrong_ending", f"{error}; rename the file"))
    except OSError as error:
        report(
            Reject(source.name, 0, "unreadable", f"cannot be read: {error.strerror or type(error).__name__}")
        )


# ---------------------------------------------------------------------------------------------------- records


def _text_lines(
    text: str, number: int, name: str, report: Report, *, spans_lines: bool = False
) -> Iterator[Line]:
    """Yield the lines of a record's text; they share the record's number unless the record spans physical lines."""
    if "\0" in text:
        report(Reject(name, number, "nul_byte", "the text holds a NUL character"))
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        report(Reject(name, number, "lone_surrogate", "the text holds half of a surrogate pair"))
        return
    for index, line in enumerate(text.split("\n")):
        yield (number + index if spans_lines else number), line
    yield END


def _json_records(name: str, lines: Iterator[Line], limits: Limits, report: Report) -> Iterator[Line]:
    field = limits.text_field
    key = json.dumps(field)
    for number, line in lines:
        if not line or line.isspace():
            continue
        try:
            value: Any = json.loads(line)
            # `json` keeps the last of two equal keys without a word; a second look only where there may be two.
            is_repeated = line.count(key) > 1 and _is_repeated(line, field)
        except json.JSONDecodeError as error:
            reason = f"not valid JSON at character {error.colno}: {error.msg}"
            report(Reject(name, number, "invalid_json", reason))
            continue
        except RecursionError:
            report(Reject(name, number, "invalid_json", "JSON is nested too deeply"))
            continue
        except ValueError:  # not a JSONDecodeError: Python refuses to convert more than 4300 digits
            report(Reject(name, number, "invalid_json", "a number has too many digits"))
            continue
        if not isinstance(value, dict):
            kind = {"NoneType": "null", "list": "an array", "str": "a string", "bool": "a boolean"}
            reason = f"the line is {kind.get(type(value).__name__, 'a number')}, not an object"
            report(Reject(name, number, "not_an_object", reason))
        elif is_repeated:
            report(Reject(name, number, "repeated_text_field", f"the field {field!r} comes twice"))
        elif value.get(field) is None:
            what = "is null" if field in value else "is missing"
            report(Reject(name, number, "no_text", f"the field {field!r} {what}"))
        elif not isinstance(value[field], str):
            reason = f"the field {field!r} is not a string"
            report(Reject(name, number, "text_not_a_string", reason))
        else:
            yield from _text_lines(value[field], number, name, report)


def _is_repeated(line: str, field: str) -> bool:
    """Say whether the outermost object of a JSON line names the field twice."""
    # The hook sees inner objects first, the outermost last.
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs
        return dict(pairs)

    return isinstance(json.loads(line, object_pairs_hook=keep), dict) and (
        sum(name == field for name, _ in outermost) > 1
    )


def _csv_records(source: Source, lines: Iterator[Line], limits: Limits, report: Report) -> Iterator[Line]:
    """Yield the text column of CSV (RFC 4180: quotes) or TSV (as IANA registers it: no quotes) with a header line."""
    name, field = source.name, limits.text_field
    is_tsv = source.format == "tsv"
    records = delimited_fields(
        name, lines, limits, report, delimiter="\t" if is_tsv else ",", is_quoted=not is_tsv
    )
    header = next(records, None)
    if header is None:
        return
    number, columns = header
    if columns.count(field) != 1:
        found = "is missing from" if field not in columns else "comes twice in"
        reason = f"column {field!r} {found} the header of {len(columns)} columns; set corpus.text_field"
        report(Reject(name, number, "no_text_field", reason))
        return
    at = columns.index(field)
    for number, fields in records:
        if len(fields) != len(columns):
            reason = f"{len(fields)} columns, the header has {len(columns)}"
            report(Reject(name, number, "column_count", reason))
            continue
        start = number + sum(value.count("\n") for value in fields[:at])
        yield from _text_lines(fields[at], start, name, report, spans_lines=True)


def delimited_fields(
    name: str, lines: Iterator[Line], limits: Limits, report: Report, *, delimiter: str, is_quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the first line, fields) of each record; quoted fields may hold delimiters and line ends.

    A record whose quotes do not work out costs its first line only: reading goes on with the line after it.
    """
    if not is_quoted:
        for number, line in lines:
            if line:
                yield number, line.split(delimiter)
        return
    # The limit is a setting of the whole process; its default of 131072 characters is less than a document.
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_record_bytes))
    waiting: deque[Line] = deque()  # lines that an open quote had swallowed

    def next_line() -> Line | None:
        return waiting.popleft() if waiting else next(lines, None)

    while (first := next_line()) is not None:
        number, line = first
        if not line:
            continue
        if '"' not in line:
            yield number, line.split(delimiter)
            continue
        taken: list[Line] = [first]
        try:
            rows = csv.reader(_record_lines(taken, next_line, limits), delimiter=delimiter, strict=True)
            yield number, next(rows)
        except csv.Error as error:
            reason = "a quote is not closed" if "unexpected end" in str(error) else f"not valid CSV: {error}"
            report(Reject(name, number, "quote", reason))
            waiting.extendleft(reversed(taken[1:]))


def _record_lines(taken: list[Line], next_line: Callable[[], Line | None], limits: Limits) -> Iterator[str]:
    """Yield lines for one record while the reader asks, noting in `taken` what it took."""
    yield taken[0][1] + "\n"
    size = len(taken[0][1])
    while (line := next_line()) is not None:
        taken.append(line)
        size += len(line[1])
        # A rejected line in between, or a record without end: stop, so that the reader sees an open quote.
        if line[0] != taken[-2][0] + 1 or size > limits.max_record_bytes:
            return
        yield line[1] + "\n"


def _parquet_rows(
    source: Source, stream: ByteStream, raw: BinaryIO, limits: Limits, report: Report
) -> Iterator[Line]:
    name, field = source.name, limits.text_field
    with tempfile.TemporaryFile() as unpacked:
        if source.compression is None:
            file: Any = raw
        else:  # Parquet is read from its end, so it is unpacked to the disk first
            try:
                while chunk := stream.read1(1 << 18):
                    with disk_errors(tempfile.gettempdir(), doing="unpacking Parquet into"):
                        unpacked.write(chunk)
            except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError):
                report(Reject(name, 0, "damaged_file", "the compressed data is damaged"))
                return
            unpacked.seek(0)
            file = unpacked
        try:
            # Pages are streamed: without these two settings a whole column chunk is held.
            table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            reason = f"not a readable Parquet file ({type(error).__name__})"
            report(Reject(name, 0, "damaged_file", reason))
            return
        if field not in table.schema_arrow.names:
            reason = f"no column {field!r} among {len(table.schema_arrow.names)}; set corpus.text_field"
            report(Reject(name, 0, "no_text_field", reason))
            return
        if not _is_text(kind := table.schema_arrow.field(field).type):
            report(Reject(name, 0, "no_text_field", f"column {field!r} is of type {kind}, not text"))
            return
        number = 1
        for group in range(table.num_row_groups):
            end = number + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(batch_size=64, row_groups=[group], columns=[field]):
                    for value in _bytes_of(batch.column(0)):
                        yield from _parquet_value(value, number, name, report)
                        number += 1
            except (pa.ArrowException, OSError) as error:
                reason = f"rows {number} to {end - 1} cannot be read ({type(error).__name__})"
                report(Reject(name, number, "damaged_rows", reason))
            number = end


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _bytes_of(column: Any) -> list[bytes | None]:
    """Return a text column's values as bytes: Arrow does not check that strings in a file are UTF-8, `decode` does."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _parquet_value(value: bytes | None, number: int, name: str, report: Report) -> Iterator[Line]:
    if value is None:
        report(Reject(name, number, "no_text", "the value is null"))
        return
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        report(Reject(name, number, "invalid_utf8", "not valid UTF-8"))
        return
    yield from _text_lines(text, number, name, report)
