"""Write and read the token store: flat arrays of token ids and marks per split, memory-mapped, in shards.

    store.json                  number type, counts, digest of the tokenizer, separator
    train-00000.ids.bin         uint16 or uint32, little endian; every shard but the last holds `shard_tokens` tokens
    train-00000.marks.bin       uint8 bits per token, see `marks.py`
    train.documents.bin         per document: first token, UTF-8 bytes of text, first line, source
    train.lines.bin             per line that has tokens: first token, line number
    train.sources.jsonl         names of the sources, one JSON string a line

Every document ends with the separator token. Building streams: memory depends on the largest document, not on the corpus.
How documents are encoded and written lives in `writer.py`, where marks come from in `marks.py`, how rows are cut in `views.py`.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedbed.artifact import Artifact, current_stage, open_verified, publish_stage, write_json
from seedbed.corpus.pipeline import iter_documents
from seedbed.data.marks import DOCUMENT, LINE, SENTENCE, SPECIAL, WORD
from seedbed.data.writer import DOCUMENT_RECORD, LINE_RECORD, TokensConfig, ids_dtype
from seedbed.data.writer import SplitWriter as _SplitWriter
from seedbed.document import SPLITS
from seedbed.errors import IncompatibleError
from seedbed.progress import Progress, silent
from seedbed.tokenizer.encoder import LookupDiffersError, TextEncoder
from seedbed.tokenizer.tokenizer import Tokenizer

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

_logger = logging.getLogger(__name__)
_COUNT_CHUNK: Final = 1 << 24


def build_store(
    config: TokensConfig,
    corpus: Artifact,
    tokenizer_artifact: Artifact,
    run: Path,
    *,
    replace: bool = False,
    lookup: bool = True,
    progress: Progress = silent,
) -> Artifact:
    """Build the stage `tokens`, or return it when it is up to date.

    The same corpus, tokenizer and config give the same bytes, whatever the number of threads and with either encoder.

    Args:
        config: the `tokens` section.
        corpus: artifact of the stage `corpus`.
        tokenizer_artifact: artifact of the stage `tokenizer`.
        run: the run folder.
        replace: build anew where a stage made differently stands.
        lookup: look words up where that gives the tokenizer's ids, see `TextEncoder`; else encode all by the tokenizer.
        progress: told the bytes of text encoded.

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
        encoder = TextEncoder(tokenizer, lookup=lookup)
        try:
            splits = _write_splits(draft.path, corpus, tokenizer, encoder, config, progress)
        except LookupDiffersError as error:
            # What was written before may be wrong too: all is written again.
            _logger.warning("tokens: %s. All text is encoded anew by the tokenizer itself.", error)
            for file in draft.path.glob("*"):
                file.unlink()
            encoder = TextEncoder(tokenizer, lookup=False, reason=str(error))
            splits = _write_splits(draft.path, corpus, tokenizer, encoder, config, progress)
        dtype = ids_dtype(tokenizer)
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
        draft.counts |= {"splits": splits, "vocab_size": tokenizer.vocab_size, "encoder": encoder.report()}
    return open_verified(run / STAGE, stage=STAGE, version=VERSION)


def _write_splits(
    folder: Path,
    corpus: Artifact,
    tokenizer: Tokenizer,
    encoder: TextEncoder,
    config: TokensConfig,
    progress: Progress,
) -> dict[str, dict[str, int]]:
    """Write all splits and return their counts."""
    splits: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        total = corpus.counts.get("splits", {}).get(split, {}).get("bytes")
        with _SplitWriter(folder, split, tokenizer, encoder, config) as writer:
            for document in iter_documents(corpus, split):
                writer.add(document)
                progress(f"tokens, {split}", done=writer.counts["bytes"], total=total, unit="bytes")
        splits[split] = writer.counts
    return splits


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
        return self._map(f"{self.name}.documents.bin", DOCUMENT_RECORD)

    @cached_property
    def _document_starts(self) -> npt.NDArray[np.int64]:
        # Copied once: searching the strided column would copy it every time.
        starts = np.ascontiguousarray(self._documents["start"])
        starts.flags.writeable = False
        return starts

    @cached_property
    def _lines(self) -> npt.NDArray[Any]:
        return self._map(f"{self.name}.lines.bin", LINE_RECORD)

    @cached_property
    def _sources(self) -> list[str]:
        return [
            json.loads(line)
            for line in self._artifact.file(f"{self.name}.sources.jsonl").open(encoding="ascii")
        ]
