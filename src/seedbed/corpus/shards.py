"""Write clean documents to Parquet shards and stream them back, in memory that does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.document import Document

__all__ = ["SCHEMA", "ShardWriter", "read_hashes", "read_shard"]

SCHEMA = pa.schema(
    [
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("line_numbers", pa.list_(pa.field("item", pa.int64(), nullable=False)), nullable=False),
        pa.field("hash", pa.binary(16), nullable=False),
    ]
)
"""`source` indexes sources.json; `line_numbers` has one entry for each line of `text`; `hash` is `document_hash`."""


class ShardWriter:
    """Write the documents of one split as `<split>-00000.parquet` and so on; use as a context manager.

    Args:
        folder: where the files go.
        split: name of the split.
        shard_bytes: UTF-8 bytes of text after which a new file begins.
        group_bytes: the same for row groups: what is held in memory while writing, and again while reading.
    """

    def __init__(
        self, folder: Path, split: str, *, shard_bytes: int = 64 << 20, group_bytes: int = 4 << 20
    ) -> None:
        self.documents = self.lines = self.characters = self.text_bytes = 0
        self._folder, self._split = folder, split
        self._shard_bytes, self._group_bytes = shard_bytes, group_bytes
        self._rows: list[tuple[str, int, Sequence[int], bytes]] = []
        self._in_group = self._in_shard = self._num_shards = 0
        self._file: Any = None

    def add(self, text: str, source: int, line_numbers: Sequence[int], digest: bytes) -> None:
        """Append one document."""
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
        self.documents += 1
        self.lines += len(line_numbers)
        self.characters += len(text)
        self.text_bytes += size
        self._rows.append((text, source, line_numbers, digest))
        self._in_group += size
        if self._in_group >= self._group_bytes:
            self._write_group()

    def counts(self) -> dict[str, int]:
        """Return what was written: documents, lines, characters, UTF-8 bytes (newlines between lines included)."""
        return {
            "documents": self.documents,
            "lines": self.lines,
            "characters": self.characters,
            "bytes": self.text_bytes,
        }

    def _write_group(self) -> None:
        if not self._rows:
            return
        if self._file is None:
            path = self._folder / f"{self._split}-{self._num_shards:05d}.parquet"
            # Dictionaries would hold every text of a group a second time; line numbers shrink to almost nothing as
            # differences.
            self._file = pq.ParquetWriter(
                path,
                SCHEMA,
                compression="zstd",
                use_dictionary=False,
                write_statistics=False,
                column_encoding={"line_numbers.list.item": "DELTA_BINARY_PACKED"},
            )
            self._num_shards += 1
        columns = list(zip(*self._rows, strict=True))
        self._file.write_table(
            pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        )
        self._in_shard += self._in_group
        self._rows, self._in_group = [], 0
        if self._in_shard >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._in_shard = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write_group()
        self._close_shard()


def read_shard(path: Path, sources: Sequence[str]) -> Iterator[Document]:
    """Yield the documents of one shard; memory stays near one row group."""
    file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    for batch in file.iter_batches(batch_size=256, columns=["text", "source", "line_numbers"]):
        texts, indices, numbers = (column.to_pylist() for column in batch.columns)
        for text, index, lines in zip(texts, indices, numbers, strict=True):
            yield Document(text, sources[index], tuple(lines))


def read_hashes(path: Path) -> Iterator[bytes]:
    """Yield the hashes of one shard's documents, in order."""
    for batch in pq.ParquetFile(path).iter_batches(columns=["hash"]):
        yield from batch.column(0).to_pylist()
