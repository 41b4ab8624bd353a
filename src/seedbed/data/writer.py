"""Encode, mark and write the documents of one split of the token store.

What the files hold is said in `store.py`, where they are read again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from seedbed.config import Config
from seedbed.data.marks import DOCUMENT, LINE, SENTENCE, SPECIAL, WORD, mark_tokens
from seedbed.document import Document
from seedbed.tokenizer.encoder import TextEncoder
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.train import cut_line

__all__ = ["DOCUMENT_RECORD", "LINE_RECORD", "SplitWriter", "TokensConfig", "ids_dtype"]

DOCUMENT_RECORD: Final = np.dtype(
    [("start", "<i8"), ("num_bytes", "<i8"), ("line", "<i8"), ("source", "<i4")]
)
LINE_RECORD: Final = np.dtype([("start", "<i8"), ("line", "<i8")])
_BATCH_CHARACTERS = (
    1 << 18
)  # encoded at a time; about 100 times this in bytes is held by each thread meanwhile


class TokensConfig(Config):
    """How documents become the token store."""

    shard_tokens: int = Field(
        2**26, ge=16, description="Tokens in a shard file; 2**26 are 192 MiB with marks."
    )
    words: Literal["segmenter", "pretokens"] = Field(
        "segmenter",
        description="Where Chinese words begin, for whole-word masking. segmenter: rjieba's words. pretokens: as the"
        " tokenizer splits text before it looks up pieces (wordpiece: every character). Other words are pre-tokens always.",
    )


def ids_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Return the number type of the ids: two bytes where they suffice."""
    return np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")


class _Shards:
    """Write one stream of numbers into files of a fixed number of items."""

    def __init__(self, folder: Path, split: str, kind: str, dtype: np.dtype[Any], size: int) -> None:
        self._name = f"{split}-{{:05d}}.{kind}.bin"
        self._folder = folder
        self._dtype = dtype
        self._size = size
        self._written = 0
        self._file: BinaryIO | None = None

    def write(self, values: npt.NDArray[Any]) -> None:
        while len(values):
            if self._file is None:
                self._file = (self._folder / self._name.format(self._written // self._size)).open("wb")
            room = self._size - self._written % self._size
            part, values = values[:room], values[room:]
            self._file.write(part.astype(self._dtype, copy=False).tobytes())
            self._written += len(part)
            if len(part) == room:
                self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Hold the tokens of a group of documents; places are counted from its first token."""

    ids: npt.NDArray[np.int32]
    marks: npt.NDArray[np.uint8]
    line_starts: npt.NDArray[np.int64]
    line_numbers: npt.NDArray[np.int64]
    document_starts: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]  # those that have tokens, by their place in the group
    counts: dict[str, int]


class SplitWriter:
    """Take the documents of one split; a context manager that writes the rest when it ends without an error.

    Args:
        folder: where the files go.
        split: their first name.
        tokenizer: gives the separator.
        encoder: gives the ids.
        config: shard size, and where Chinese words come from.
    """

    def __init__(
        self, folder: Path, split: str, tokenizer: Tokenizer, encoder: TextEncoder, config: TokensConfig
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._segment_chinese = config.words == "segmenter"
        # An unknown character is text the model must deal with, so [UNK] is not marked special.
        self._special_ids = tokenizer.special_ids - {tokenizer.unk_id}
        self._separator = tokenizer.separator_id
        self._stack = ExitStack()
        self._ids = _Shards(folder, split, "ids", ids_dtype(tokenizer), config.shard_tokens)
        self._marks = _Shards(folder, split, "marks", np.dtype("u1"), config.shard_tokens)
        self._documents = self._stack.enter_context((folder / f"{split}.documents.bin").open("wb"))
        self._lines = self._stack.enter_context((folder / f"{split}.lines.bin").open("wb"))
        self._sources = self._stack.enter_context((folder / f"{split}.sources.jsonl").open("wb"))
        self._source: str | None = None
        self._pending: list[Document] = []
        self._pending_characters = 0
        self._groups: deque[tuple[list[Document], Future[_Encoded]]] = deque()
        self._threads = self._stack.enter_context(ThreadPoolExecutor(encoder.num_threads))
        self._threads_ahead = encoder.num_threads if encoder.num_threads > 1 else 0
        self.counts = dict.fromkeys(
            ("tokens", "documents", "lines", "sentences", "words", "unknown", "bytes", "empty", "sources"), 0
        )

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._flush()
            while self._groups:
                self._write(*self._groups.popleft())
        self._ids.close()
        self._marks.close()
        self._stack.close()

    def add(self, document: Document) -> None:
        """Take one document; it is written together with its neighbours."""
        self._pending.append(document)
        self._pending_characters += len(document.text)
        if self._pending_characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        """Encode and write the pending documents."""
        documents, self._pending, self._pending_characters = self._pending, [], 0
        # Several groups are encoded at a time; they are written in their order.
        self._groups.append((documents, self._threads.submit(self._encode, documents)))
        while len(self._groups) > self._threads_ahead:
            self._write(*self._groups.popleft())

    def _encode(self, documents: list[Document]) -> _Encoded:
        """Return the tokens of some documents, separators included."""
        # Pieces of lines, with the document and the line (both counted within this group) each belongs to
        texts: list[str] = []
        document_of: list[int] = []
        line_of: list[int] = []
        numbers: list[int] = []
        end = "\n" if self._tokenizer.keeps_newlines else ""
        for index, document in enumerate(documents):
            lines = document.text.split("\n")
            assert len(lines) == len(document.line_numbers), document.source
            for position, (line, number) in enumerate(zip(lines, document.line_numbers, strict=True)):
                for piece in cut_line(line + end if position + 1 < len(lines) else line):
                    texts.append(piece)
                    document_of.append(index)
                    line_of.append(len(numbers))
                numbers.append(number)
        ids, marks, counts = self._encode_pieces(texts)

        # The first token of every line and document; those without tokens have none
        tokens_line = np.repeat(np.array(line_of, np.int64), counts)
        tokens_document = np.repeat(np.array(document_of, np.int64), counts)
        line_starts = _changes(tokens_line)
        document_starts = _changes(tokens_document)
        marks[line_starts] |= LINE | SENTENCE | WORD
        marks[document_starts] |= DOCUMENT
        unknown = self._tokenizer.unk_id
        made = {
            "unknown": int((ids == unknown).sum()) if unknown is not None else 0,
            "sentences": int(np.count_nonzero(marks & SENTENCE)),
            "words": int(np.count_nonzero(marks & WORD)),
        }

        # A separator behind every document moves all that follows it by one
        present = tokens_document[document_starts]
        document_ends = np.append(document_starts[1:], len(ids))[: len(document_starts)]
        shift = np.searchsorted(document_ends, line_starts, side="right")
        return _Encoded(
            ids=np.insert(ids, document_ends, self._separator),
            marks=np.insert(marks, document_ends, SPECIAL | SENTENCE | WORD),
            line_starts=line_starts + shift,
            line_numbers=np.array(numbers, np.int64)[tokens_line[line_starts]],
            document_starts=document_starts + np.arange(len(document_starts)),
            documents=present,
            counts=made,
        )

    def _write(self, documents: list[Document], future: Future[_Encoded]) -> None:
        """Write what has been encoded."""
        made = future.result()
        for name, count in made.counts.items():
            self.counts[name] += count
        self._write_lines(made.line_starts, made.line_numbers)
        self._write_documents(made.document_starts, [documents[i] for i in made.documents.tolist()])
        self._ids.write(made.ids)
        self._marks.write(made.marks)
        self.counts["tokens"] += len(made.ids)
        self.counts["empty"] += len(documents) - len(made.documents)

    def _encode_pieces(
        self, texts: list[str]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return ids and marks of all pieces, and tokens per piece, a bounded number of characters at a time."""
        ids, marks, counts = [np.empty(0, np.int32)], [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
        for batch in _batches(texts, _BATCH_CHARACTERS):
            tokens = self._encoder.encode(batch)
            ids.append(tokens.ids)
            counts.append(tokens.counts)
            marks.append(
                mark_tokens(
                    batch, tokens, special_ids=self._special_ids, segment_chinese=self._segment_chinese
                )
            )
        return np.concatenate(ids), np.concatenate(marks), np.concatenate(counts)

    def _write_lines(self, starts: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> None:
        records = np.empty(len(starts), LINE_RECORD)
        records["start"] = starts + self.counts["tokens"]
        records["line"] = numbers
        self._lines.write(records.tobytes())
        self.counts["lines"] += len(records)

    def _write_documents(self, starts: npt.NDArray[np.int64], documents: list[Document]) -> None:
        records = np.empty(len(starts), DOCUMENT_RECORD)
        records["start"] = starts + self.counts["tokens"]
        for record, document in zip(records, documents, strict=True):
            if document.source != self._source:
                # Only the last name is remembered, so that memory does not grow; a source that comes back gets a new number.
                self._source = document.source
                self._sources.write(json.dumps(document.source).encode("ascii") + b"\n")
                self.counts["sources"] += 1
            size = len(document.text.encode("utf-8"))
            record["num_bytes"], record["line"] = size, document.line_numbers[0]
            record["source"] = self.counts["sources"] - 1
            self.counts["bytes"] += size
        self._documents.write(records.tobytes())
        self.counts["documents"] += len(records)


def _batches(texts: Iterable[str], limit: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _changes(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the positions where a new value begins, the first one included."""
    return np.flatnonzero(np.diff(values, prepend=-1))
