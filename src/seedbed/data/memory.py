"""Hold the tokens of a few texts in memory, with the reading side of `data/store.py`.

For text that is looked at once: a user's own validation files, a prompt. Ids and marks are those the store would hold
for the same documents. Besides, each token knows how many bytes of text it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seedbed.data.marks import DOCUMENT, LINE, SENTENCE, SPECIAL, WORD, mark_tokens
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.train import cut_line

__all__ = ["TextTokens"]

_BATCH_CHARACTERS = 1 << 19  # encoded at a time; about 40 times this in bytes is held meanwhile


class TextTokens:
    """Tokens of texts, each a document that ends with the separator; texts without tokens are left out.

    Takes about 13 bytes a token, and twice that while it is made.

    Attributes:
        num_tokens: separators included.
        num_documents: documents that have tokens.
        num_bytes: UTF-8 bytes of their text, line ends included.
        num_unknown: tokens that are [UNK].
        vocab_size: ids are below this.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        self._separator = tokenizer.separator_id
        ids: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
        marks: list[npt.NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        sizes: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        starts: list[int] = []
        self.num_tokens = 0
        for text in texts:
            encoded = _encode(text, tokenizer)
            if encoded is None:
                continue
            ids.append(encoded[0])
            marks.append(encoded[1])
            sizes.append(encoded[2])
            starts.append(self.num_tokens)
            self.num_tokens += len(encoded[0])
        self._ids, self._marks, self._sizes = (
            np.concatenate(ids),
            np.concatenate(marks),
            np.concatenate(sizes),
        )
        self._starts = np.array(starts, np.int64)
        self.num_documents = len(starts)
        self.num_bytes = int(self._sizes.sum())
        self.num_unknown = (
            0 if tokenizer.unk_id is None else int(np.count_nonzero(self._ids == tokenizer.unk_id))
        )
        self.vocab_size = tokenizer.vocab_size

    def gather(
        self, starts: npt.NDArray[np.int64], length: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Copy windows out of the stream; see `SplitTokens.gather`."""
        starts = np.asarray(starts, np.int64)
        at = starts[:, None] + np.arange(length)
        is_inside = at < self.num_tokens
        at = np.minimum(at, max(0, self.num_tokens - 1))
        valid = np.clip(self.num_tokens - starts, 0, length)
        return (
            np.where(is_inside, self._ids[at], 0).astype(np.int32),
            np.where(is_inside, self._marks[at], 0).astype(np.uint8),
            valid,
        )

    def slice(self, start: int, stop: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return (ids, marks) of tokens start .. stop - 1; the end cuts them off."""
        return self._ids[start:stop], self._marks[start:stop]

    def document_starts(self) -> npt.NDArray[np.int64]:
        """Return the first token of every document, (num_documents,) int64, rising."""
        return self._starts

    def byte_counts(self) -> npt.NDArray[np.int64]:
        """Return how many UTF-8 bytes of text each token stands for, (num_tokens,) int64.

        From where it begins to where the next one does: blanks and line ends between tokens belong to the one before
        them, those before a document's first token to that. A separator stands for none. They add up to `num_bytes`.
        """
        return self._sizes


def _encode(
    text: str, tokenizer: Tokenizer
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
    """Return ids, marks and byte counts of one document with its separator; None where it has no tokens."""
    pieces: list[str] = []
    places: list[int] = []  # first character of each piece in `text`
    begins_line: list[bool] = []
    lines = text.split("\n")
    end = "\n" if tokenizer.keeps_newlines else ""
    at = 0
    for number, line in enumerate(lines):
        place, is_first = at, True
        for piece in cut_line(line + end if number + 1 < len(lines) else line):
            pieces.append(piece)
            places.append(place)
            begins_line.append(is_first)
            place, is_first = place + len(piece), False
        at += len(line) + 1
    ids, starts, marks, counts = _encode_pieces(pieces, tokenizer)
    if not len(ids):
        return None
    # A line's first token is that of its first piece that has any.
    line_of = np.repeat(np.cumsum(begins_line), counts)
    marks[np.flatnonzero(np.diff(line_of, prepend=-1))] |= LINE | SENTENCE | WORD
    marks[0] |= DOCUMENT

    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (characters >= 0x80).astype(np.int64) + (characters >= 0x800) + (characters >= 0x10000)
    offsets = np.concatenate(([0], np.cumsum(widths)))
    firsts = np.repeat(np.array(places, np.int64), counts) + starts
    firsts = offsets[np.maximum.accumulate(firsts)]
    firsts[0] = 0
    sizes = np.diff(firsts, append=offsets[-1])
    return (
        np.append(ids, np.int32(tokenizer.separator_id)),
        np.append(marks, np.uint8(SPECIAL | SENTENCE | WORD)),
        np.append(sizes, 0),
    )


def _encode_pieces(
    pieces: Sequence[str], tokenizer: Tokenizer
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return ids, first characters within the piece and marks of all tokens, and the number of tokens of each piece."""
    special = tokenizer.special_ids - {tokenizer.unk_id}
    ids, starts, marks = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, np.uint8)]
    counts = [np.empty(0, np.int64)]
    batch: list[str] = []
    size = 0
    for number, piece in enumerate(pieces):
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH_CHARACTERS or number + 1 == len(pieces):
            spans = tokenizer.encode_spans(batch)
            ids.append(spans.ids)
            starts.append(spans.starts)
            marks.append(mark_tokens(batch, spans.tokens(batch), special_ids=special, segment_chinese=True))
            counts.append(spans.counts)
            batch, size = [], 0
    return np.concatenate(ids), np.concatenate(starts), np.concatenate(marks), np.concatenate(counts)
