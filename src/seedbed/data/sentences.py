"""Cut single sentences from the token store, and rows of several texts from files: what is compared with one another.

Row `r` is sentence `r` of the split, in every epoch; `views.RowReader` adds the order. Padding goes up to the longest sentence
of the rows asked for together, and is never attended.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from seedbed.data.examples import Texts
from seedbed.data.store import DOCUMENT, SENTENCE, SPECIAL
from seedbed.data.views import Rows, TokenStream
from seedbed.errors import DataError

__all__ = ["SentenceView", "TextGroupView"]

Int64s = npt.NDArray[np.int64]

_logger = logging.getLogger(__name__)

_BLOCK: Final = 4096
"""Tokens between two entries of the table: a row is found by one search and one look at so many marks."""
_BLOCKS_AT_ONCE: Final = 256


class SentenceView:
    """Give every sentence of a split as a row.

    Memory is 8 bytes for each 4,096 tokens, whatever the number of sentences; the marks are read once when the view is made.

    Args:
        tokens: the split.
        length: L; a longer sentence loses its end.
        min_tokens: shorter sentences are left out (headings, numbers, interjections).

    Attributes:
        num_rows: sentences used.
        left_out: shorter ones.
        num_cut: sentences that lost their end.

    Raises:
        DataError: no sentence is long enough.
    """

    def __init__(self, tokens: TokenStream, *, length: int, min_tokens: int) -> None:
        self._tokens = tokens
        self._length = length
        self._least = min(min_tokens, length)
        counts = np.zeros(-(-tokens.num_tokens // _BLOCK), np.int64)
        self.left_out = self.num_cut = 0
        step = _BLOCK * _BLOCKS_AT_ONCE
        for begin in range(0, tokens.num_tokens, step):
            starts, sizes = self._sentences(begin, min(begin + step, tokens.num_tokens))
            is_used = sizes >= self._least
            found = np.bincount(starts[is_used] // _BLOCK)
            counts[: len(found)] += found
            self.left_out += int((~is_used).sum())
            self.num_cut += int((sizes > length).sum())
        self._rows = np.concatenate(([0], np.cumsum(counts)))
        self.num_rows = int(self._rows[-1])
        if not self.num_rows:
            raise DataError(
                f"no sentence of this split has {self._least} tokens ({self.left_out} are shorter).",
                hint="give more text, or lower objective.min_tokens",
            )
        if self.left_out or self.num_cut:
            _logger.info(
                "%d sentences; %d are shorter than %d tokens and left out, %d are longer than %d and cut",
                self.num_rows,
                self.left_out,
                self._least,
                self.num_cut,
                length,
            )

    def rows(self, epochs: Int64s, rows: Int64s) -> Rows:
        """Return sentences by number, padded with 0 to the longest of them."""
        blocks = np.searchsorted(self._rows, rows, side="right") - 1
        found: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]] = []
        for row, block in zip(rows.tolist(), blocks.tolist(), strict=True):
            begin = block * _BLOCK
            starts, sizes = self._sentences(begin, min(begin + _BLOCK, self._tokens.num_tokens))
            place = np.flatnonzero(sizes >= self._least)[row - int(self._rows[block])]
            start = int(starts[place])
            found.append(self._tokens.slice(start, start + min(int(sizes[place]), self._length)))
        lengths = np.array([len(ids) for ids, _ in found], np.int64)
        ids = np.zeros((len(rows), int(lengths.max())), np.int64)
        marks = np.zeros(ids.shape, np.uint8)
        for index, (own_ids, own_marks) in enumerate(found):
            ids[index, : len(own_ids)], marks[index, : len(own_ids)] = own_ids, own_marks
        return Rows(
            ids=torch.from_numpy(ids),
            marks=torch.from_numpy(marks),
            lengths=torch.from_numpy(lengths),
            row_ids=torch.from_numpy(rows.copy()),
            epochs=torch.from_numpy(epochs.copy()),
            is_full=bool((lengths == ids.shape[1]).all()),
        )

    def _sentences(self, begin: int, end: int) -> tuple[Int64s, Int64s]:
        """Return starts and sizes of the sentences that begin in tokens begin .. end - 1; a size beyond L + 1 is not exact."""
        stop = min(end + self._length + 1, self._tokens.num_tokens)
        _, marks = self._tokens.slice(begin, stop)
        bounds = np.flatnonzero((marks & (SENTENCE | DOCUMENT)) != 0).astype(np.int64)
        sizes = np.diff(bounds, append=stop - begin)
        is_text = (marks[bounds] & SPECIAL) == 0  # a separator is a sentence of its own
        inside = is_text & (bounds < end - begin)
        return bounds[inside] + begin, sizes[inside]


class TextGroupView:
    """Give examples of several texts each as rows: the texts' tokens one after the other.

    `Rows.part_lengths` says how long each is. Marks are all zero.

    Args:
        texts: the first texts of all examples, their second ones, and so on.
        length: L of each text; a longer one loses its end.
    """

    def __init__(self, texts: Sequence[Texts], *, length: int) -> None:
        if not texts or not len(texts[0]):
            raise DataError("there are no examples.", hint="give files with pairs of sentences")
        self._texts = list(texts)
        self._sizes = np.stack([np.minimum(part.lengths, length) for part in texts], axis=1)
        self.num_rows = len(texts[0])

    def rows(self, epochs: Int64s, rows: Int64s) -> Rows:
        """Return examples by number, padded with 0 to the longest of them."""
        sizes = self._sizes[rows]
        lengths = sizes.sum(axis=1)
        ids = np.zeros((len(rows), max(1, int(lengths.max()))), np.int64)
        for index, row in enumerate(rows.tolist()):
            at = 0
            for part, size in zip(self._texts, sizes[index].tolist(), strict=True):
                start = int(part.starts[row])
                ids[index, at : at + size] = part.ids[start : start + size]
                at += size
        return Rows(
            ids=torch.from_numpy(ids),
            marks=torch.zeros(ids.shape, dtype=torch.uint8),
            lengths=torch.from_numpy(lengths),
            row_ids=torch.from_numpy(rows.copy()),
            epochs=torch.from_numpy(epochs.copy()),
            is_full=bool((lengths == ids.shape[1]).all()),
            part_lengths=torch.from_numpy(sizes),
        )
