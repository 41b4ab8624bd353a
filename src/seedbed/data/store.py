"""Write and read the token store: flat arrays of token ids and marks per split, memory-mapped, in shards.

    store.json                  number type, counts, digest of the tokenizer, separator
    train-00000.ids.bin         uint16 or uint32, little endian; every shard but the last holds `shard_tokens` tokens
    train-00000.marks.bin       uint8 bits per token, see `marks.py`
    train.documents.bin         per document: first token, UTF-8 bytes of text, first line, source
    train.lines.bin             per line that has tokens: first token, line number
    train.sources.jsonl         names of the sources, one JSON string a line

Every document ends with the separator token. Building streams: memory depends on the largest document, not on the corpus.
Where marks come from lives in `marks.py`, how rows are cut in `views.py`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from seedbed.artifact import Artifact, current_stage, open_verified, publish_stage, write_json
from seedbed.config import Config
from seedbed.corpus.pipeline import iter_documents
from seedbed.data.marks import DOCUMENT, LINE, SENTENCE, SPECIAL, WORD, mark_tokens
from seedbed.document import SPLITS, Document
from seedbed.errors import IncompatibleError
from seedbed.progress import Progress, silent
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.train import cut_line

__all__ = [
    "DOCUMENT",
    "LINE",
    "SENTENCE",
    "SPECIAL",
    "STAGE",
    "VERSION",
    "WORD",
    "SplitTokens",
    "TokenStore",
    "TokensConfig",
    "build_store",
    "check_tokenizer",
]

STAGE = "tokens"
VERSION = 1

_DOCUMENTS: Final = np.dtype([("start", "<i8"), ("num_bytes", "<i8"), ("line", "<i8"), ("source", "<i4")])
_LINES: Final = np.dtype([("start", "<i8"), ("line", "<i8")])
_BATCH_CHARACTERS = 1 << 19  # encoded at a time; about 40 times this in bytes is held meanwhile
_COUNT_CHUNK: Final = 1 << 24


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


def build_store(
    config: TokensConfig,
    corpus: Artifact,
    tokenizer_artifact: Artifact,
    run: Path,
    *,
    replace: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Build the stage `tokens`, or return it when it is up to date.

    The same corpus, tokenizer and config give the same bytes, whatever the number of threads.

    Raises:
        IncompatibleError: the run holds a store made differently and `replace` is false, or the tokenizer has no
            token to separate documents with.
        DiskError: the disk is full or the run folder cannot be written.
    """
    plain = config.model_dump(mode="json")
    inputs = {"corpus": corpus.digest, "tokenizer": tokenizer_artifact.digest}
    done = current_stage(run, STAGE, version=VERSION, config=plain, inputs=inputs, replace=replace)
    if done is not None:
        return done
    tokenizer = Tokenizer.load(tokenizer_artifact.path)
    with publish_stage(run, STAGE, version=VERSION, config=plain, inputs=inputs) as draft:
        splits: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            total = corpus.counts.get("splits", {}).get(split, {}).get("bytes")
            with _SplitWriter(draft.path, split, tokenizer, config) as writer:
                for document in iter_documents(corpus, split):
                    writer.add(document)
                    progress(f"tokens, {split}", done=writer.counts["bytes"], total=total, unit="bytes")
            splits[split] = writer.counts
        dtype = _ids_dtype(tokenizer)
        write_json(
            draft.path / "store.json",
            {
                "dtype": dtype.name,
                "shard_tokens": config.shard_tokens,
                "vocab_size": tokenizer.vocab_size,
                "separator_id": tokenizer.separator_id,
                "tokenizer_digest": tokenizer.digest,
                "splits": splits,
            },
        )
        draft.counts |= {"splits": splits, "vocab_size": tokenizer.vocab_size}
    return open_verified(run / STAGE, stage=STAGE, version=VERSION)


def check_tokenizer(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that is not the one the store was made with.

    Raises:
        IncompatibleError: names both digests.
    """
    if store.tokenizer_digest != tokenizer.digest:
        raise IncompatibleError(
            f"{store.path} holds tokens of tokenizer {store.tokenizer_digest}, but the one given is {tokenizer.digest}.",
            hint="use the tokenizer the store was made with, or rerun the tokens stage",
        )


def _ids_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")


# ---------------------------------------------------------------------------------------------- writing


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


class _SplitWriter:
    """Encode, mark and write the documents of one split."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, config: TokensConfig) -> None:
        self._tokenizer = tokenizer
        self._segment_chinese = config.words == "segmenter"
        # An unknown character is text the model must deal with, so [UNK] is not marked special.
        self._special_ids = tokenizer.special_ids - {tokenizer.unk_id}
        self._separator = tokenizer.separator_id
        self._stack = ExitStack()
        self._ids = _Shards(folder, split, "ids", _ids_dtype(tokenizer), config.shard_tokens)
        self._marks = _Shards(folder, split, "marks", np.dtype("u1"), config.shard_tokens)
        self._documents = self._stack.enter_context((folder / f"{split}.documents.bin").open("wb"))
        self._lines = self._stack.enter_context((folder / f"{split}.lines.bin").open("wb"))
        self._sources = self._stack.enter_context((folder / f"{split}.sources.jsonl").open("wb"))
        self._source: str | None = None
        self._pending: list[Document] = []
        self._pending_characters = 0
        self.counts = dict.fromkeys(
            ("tokens", "documents", "lines", "sentences", "words", "unknown", "bytes", "empty", "sources"), 0
        )

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._flush()
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
        ids, marks, counts = self._encode(texts)

        # The first token of every line and document; those without tokens have none
        tokens_line = np.repeat(np.array(line_of, np.int64), counts)
        tokens_document = np.repeat(np.array(document_of, np.int64), counts)
        line_starts = _changes(tokens_line)
        document_starts = _changes(tokens_document)
        marks[line_starts] |= LINE | SENTENCE | WORD
        marks[document_starts] |= DOCUMENT
        self.counts["unknown"] += (
            int((ids == self._tokenizer.unk_id).sum()) if self._tokenizer.unk_id is not None else 0
        )
        self.counts["sentences"] += int(np.count_nonzero(marks & SENTENCE))
        self.counts["words"] += int(np.count_nonzero(marks & WORD))

        # A separator behind every document moves all that follows it by one
        present = tokens_document[document_starts]
        document_ends = np.append(document_starts[1:], len(ids))[: len(document_starts)]
        shift = np.searchsorted(document_ends, line_starts, side="right")
        ids = np.insert(ids, document_ends, self._separator)
        marks = np.insert(marks, document_ends, SPECIAL | SENTENCE | WORD)
        self._write_lines(line_starts + shift, np.array(numbers, np.int64)[tokens_line[line_starts]])
        self._write_documents(
            document_starts + np.arange(len(document_starts)), [documents[i] for i in present.tolist()]
        )
        self._ids.write(ids)
        self._marks.write(marks)
        self.counts["tokens"] += len(ids)
        self.counts["empty"] += len(documents) - len(present)

    def _encode(
        self, texts: list[str]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return ids and marks of all pieces, and tokens per piece, a bounded number of characters at a time."""
        ids, marks, counts = [np.empty(0, np.int32)], [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
        for batch in _batches(texts, _BATCH_CHARACTERS):
            spans = self._tokenizer.encode_spans(batch)
            ids.append(spans.ids)
            counts.append(spans.counts)
            marks.append(
                mark_tokens(
                    batch, spans, special_ids=self._special_ids, segment_chinese=self._segment_chinese
                )
            )
        return np.concatenate(ids), np.concatenate(marks), np.concatenate(counts)

    def _write_lines(self, starts: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> None:
        records = np.empty(len(starts), _LINES)
        records["start"] = starts + self.counts["tokens"]
        records["line"] = numbers
        self._lines.write(records.tobytes())
        self.counts["lines"] += len(records)

    def _write_documents(self, starts: npt.NDArray[np.int64], documents: list[Document]) -> None:
        records = np.empty(len(starts), _DOCUMENTS)
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


# ---------------------------------------------------------------------------------------------- reading


class TokenStore:
    """Open a store; splits and shards are verified and mapped when first touched.

    Attributes:
        path: folder of the artifact.
        vocab_size: ids are below this.
        separator_id: id that ends every document.
        tokenizer_digest: `Tokenizer.digest` of the tokenizer it was made with.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.path = artifact.path
        self._meta: dict[str, Any] = json.loads(artifact.file("store.json").read_bytes())
        self.vocab_size: int = self._meta["vocab_size"]
        self.separator_id: int = self._meta["separator_id"]
        self.tokenizer_digest: str = self._meta["tokenizer_digest"]
        self._splits: dict[str, SplitTokens] = {}

    @classmethod
    def open(cls, artifact: Artifact | Path | str) -> TokenStore:
        """Open the artifact of the stage `tokens`, or the folder of one.

        Raises:
            IntegrityError: unfinished or damaged.
            IncompatibleError: another stage or version.
        """
        path = artifact.path if isinstance(artifact, Artifact) else artifact
        return cls(open_verified(path, stage=STAGE, version=VERSION))

    def split(self, name: str) -> SplitTokens:
        """Return one split, which may be empty."""
        assert name in SPLITS, name
        if name not in self._splits:
            self._splits[name] = SplitTokens(self._artifact, name, self._meta)
        return self._splits[name]


class SplitTokens:
    """Read the tokens of one split.

    Attributes:
        num_tokens: separators included.
        num_documents: documents that have tokens.
        num_bytes: UTF-8 bytes of their text.
        vocab_size: ids are below this.
        counts: all counts of the split; `sentences` and `words` leave separators out, `empty` are documents without tokens.
    """

    def __init__(self, artifact: Artifact, name: str, meta: dict[str, Any]) -> None:
        self._artifact = artifact
        self._dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        self._shard_tokens: int = meta["shard_tokens"]
        self._shards: dict[int, tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]] = {}
        self.name = name
        self.counts: dict[str, int] = dict(meta["splits"][name])
        self.num_tokens = self.counts["tokens"]
        self.num_documents = self.counts["documents"]
        self.num_bytes = self.counts["bytes"]
        self.vocab_size: int = meta["vocab_size"]

    def gather(
        self, starts: npt.NDArray[np.int64], length: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Copy windows out of the stream.

        Args:
            starts: (B,) int64 first tokens, 0 <= start.
            length: tokens in a window.

        Returns:
            ids (B, length) int32 and marks (B, length) uint8, both 0 past the end of the split, and (B,) int64 the number of
            real tokens in each window.
        """
        starts = np.asarray(starts, np.int64)
        assert not len(starts) or starts.min() >= 0
        ids = np.zeros((len(starts), length), np.int32)
        marks = np.zeros((len(starts), length), np.uint8)
        valid = np.clip(self.num_tokens - starts, 0, length)
        first = starts // self._shard_tokens
        is_whole = (valid == length) & ((starts + length - 1) // self._shard_tokens == first)
        for shard in np.unique(first[is_whole]).tolist():
            rows = np.flatnonzero(is_whole & (first == shard))
            at = starts[rows] - shard * self._shard_tokens
            shard_ids, shard_marks = self._shard(shard)
            ids[rows] = np.lib.stride_tricks.sliding_window_view(shard_ids, length)[at]
            marks[rows] = np.lib.stride_tricks.sliding_window_view(shard_marks, length)[at]
        for row in np.flatnonzero(~is_whole).tolist():
            count = int(valid[row])
            ids[row, :count], marks[row, :count] = self.slice(int(starts[row]), int(starts[row]) + count)
        return ids, marks, valid

    def slice(self, start: int, stop: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return (ids int32, marks uint8) of tokens start .. stop - 1, across shards; the end of the split cuts them off."""
        ids, marks = [np.empty(0, np.int32)], [np.empty(0, np.uint8)]
        stop = min(stop, self.num_tokens)
        while start < stop:
            shard, at = divmod(start, self._shard_tokens)
            take = min(stop - start, self._shard_tokens - at)
            shard_ids, shard_marks = self._shard(shard)
            ids.append(shard_ids[at : at + take].astype(np.int32))
            marks.append(shard_marks[at : at + take])
            start += take
        return np.concatenate(ids), np.concatenate(marks)

    def tokens(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Return the ids of tokens start .. stop - 1."""
        return self.slice(start, stop)[0]

    def trace(self, token: int) -> tuple[str, int]:
        """Return (source, line) of a token: the file and its 1-based line. A separator belongs to the line before it.

        Raises:
            IndexError: there is no such token.
        """
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"token {token} of {self.num_tokens} in split {self.name}")
        line = bisect_right(self._lines["start"], token) - 1
        document = bisect_right(self._documents["start"], token) - 1
        return self._sources[int(self._documents["source"][document])], int(self._lines["line"][line])

    def document_starts(self) -> npt.NDArray[np.int64]:
        """Return the first token of every document, (num_documents,) int64, rising."""
        return self._document_starts

    def document_bytes(self) -> npt.NDArray[np.int64]:
        """Return the UTF-8 bytes of every document's text, (num_documents,) int64."""
        return np.ascontiguousarray(self._documents["num_bytes"])

    def token_counts(self) -> npt.NDArray[np.int64]:
        """Return how often each id occurs, (vocab_size,) int64; separators included. Reads the whole split."""
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(0, self.num_tokens, _COUNT_CHUNK):
            counts += np.bincount(self.tokens(start, start + _COUNT_CHUNK), minlength=self.vocab_size)
        return counts

    def _shard(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Return ids and marks of one shard, verified the first time."""
        if index not in self._shards:
            name = f"{self.name}-{index:05d}"
            self._shards[index] = (
                self._map(f"{name}.ids.bin", self._dtype),
                self._map(f"{name}.marks.bin", np.dtype("u1")),
            )
        return self._shards[index]

    def _map(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        path = self._artifact.file(name)
        # An empty file cannot be mapped. The base class keeps memmap's slow __getitem__ out of the way.
        return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)

    @cached_property
    def _documents(self) -> npt.NDArray[Any]:
        return self._map(f"{self.name}.documents.bin", _DOCUMENTS)

    @cached_property
    def _document_starts(self) -> npt.NDArray[np.int64]:
        # Copied once: searching the strided column would copy it every time.
        starts = np.ascontiguousarray(self._documents["start"])
        starts.flags.writeable = False
        return starts

    @cached_property
    def _lines(self) -> npt.NDArray[Any]:
        return self._map(f"{self.name}.lines.bin", _LINES)

    @cached_property
    def _sources(self) -> list[str]:
        return [
            json.loads(line)
            for line in self._artifact.file(f"{self.name}.sources.jsonl").open(encoding="ascii")
        ]
