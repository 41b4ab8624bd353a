"""Cut rows from the token store.

A view says how many rows a split has and what row `r` of epoch `e` holds; `RowReader` adds the order. Both are pure:
the whole state of the data side is one integer, the number of rows consumed. New views (sentence pairs, single
sentences, labelled examples) are siblings of `WindowView`; an objective makes the one it reads in `make_view`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seedbed.data.draws import Draws
from seedbed.data.order import KeyedPermutation, place_of
from seedbed.data.store import DOCUMENT
from seedbed.errors import DataError
from seedbed.hashing import key_from
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["RowReader", "RowSource", "Rows", "TokenStream", "View", "WindowView", "segments_of"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Hold the raw rows of one micro-batch.

    Attributes:
        ids: (B, L) int64 token ids, 0 past the end of a short row.
        marks: (B, L) uint8 marks of `data/store.py`, 0 past the end.
        lengths: (B,) int64 number of real tokens; of windows, less than L only in the last row of a split.
        row_ids: (B,) int64 row numbers, unique within the view.
        epochs: (B,) int64.
        is_full: every row has L tokens; a plain bool, so that the usual case needs no look at data.
        first_lengths: (B,) int64 tokens of the first of two texts in a row (task pairs, prompt and answer), or None.
        labels: (B,) int64 classes or float32 scores of labelled examples, or None.
        part_lengths: (B, K) int64 tokens of each of K texts in a row (texts that are compared), or None.
    """

    ids: Tensor
    marks: Tensor
    lengths: Tensor
    row_ids: Tensor
    epochs: Tensor
    is_full: bool
    first_lengths: Tensor | None = None
    labels: Tensor | None = None
    part_lengths: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.ids.shape[0], self.ids.shape[1]


class TokenStream(Protocol):
    """Be the tokens of one split: `store.SplitTokens` on disk, `memory.TextTokens` in memory."""

    num_tokens: int

    def gather(
        self, starts: npt.NDArray[np.int64], length: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return ids, marks (B, length) and the number of real tokens (B,) of windows."""

    def slice(self, start: int, stop: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return ids and marks of tokens start .. stop - 1."""

    def document_starts(self) -> npt.NDArray[np.int64]:
        """Return the first token of every document."""


class View(Protocol):
    """Say how many rows an epoch has and fetch some of them."""

    num_rows: int

    def rows(self, epochs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Rows:
        """Return the rows with these numbers."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Say what a view may cut its rows from.

    Attributes:
        tokens: the tokens of one split.
        split: "train" or "validation", for views that read files of their own.
        document_order_key: string documents together in another order each epoch, keyed by this; None: as they lie.
        tokenizer: for views that read text of their own (labelled examples); None where there is none.
        seed: keys what a view draws itself (how a pair is cut).
    """

    tokens: TokenStream
    split: str = "train"
    document_order_key: int | None = None
    tokenizer: Tokenizer | None = None
    seed: int = 0


class WindowView:
    """Cut the stream of documents into windows of exactly `length` tokens; the last one may be shorter.

    With `document_order_key` the documents are strung together in another order each epoch (a keyed permutation of
    documents), so that a row's neighbours change from epoch to epoch; without it rows are the same windows each epoch.
    Every token is in exactly one row of an epoch either way.
    """

    def __init__(self, split: TokenStream, *, length: int, document_order_key: int | None = None) -> None:
        if split.num_tokens == 0:
            raise DataError(
                "the split has no tokens.", hint="give more text, or raise corpus.validation_fraction"
            )
        self.split = split
        self.length = length
        self.num_rows = -(-split.num_tokens // length)
        self._document_order_key = document_order_key
        self._epoch: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = (
            None  # cache of one epoch
        )

    def rows(self, epochs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Rows:
        """Return rows by number; `epochs` matters only when documents are reordered."""
        lengths = np.minimum(self.length, self.split.num_tokens - rows * self.length)
        if self._document_order_key is None:
            ids, marks, _ = self.split.gather(rows * self.length, self.length)
        else:
            ids = np.zeros((len(rows), self.length), dtype=np.int64)
            marks = np.zeros((len(rows), self.length), dtype=np.uint8)
            for index, (epoch, row) in enumerate(zip(epochs.tolist(), rows.tolist(), strict=True)):
                self._fill(epoch, row, ids[index], marks[index])
        return Rows(
            ids=torch.from_numpy(ids.astype(np.int64, copy=False)),
            marks=torch.from_numpy(np.ascontiguousarray(marks)),
            lengths=torch.from_numpy(lengths),
            row_ids=torch.from_numpy(rows.copy()),
            epochs=torch.from_numpy(epochs.copy()),
            is_full=bool((lengths == self.length).all()),
        )

    def _fill(self, epoch: int, row: int, ids: npt.NDArray[np.int64], marks: npt.NDArray[np.uint8]) -> None:
        """Copy one row of the epoch's reordered stream."""
        sources, starts = self._documents(epoch)
        at, stop = row * self.length, min((row + 1) * self.length, self.split.num_tokens)
        document = int(np.searchsorted(starts, at, side="right")) - 1
        filled = 0
        while at < stop:
            take = min(int(starts[document + 1]), stop) - at
            begin = int(sources[document]) + at - int(starts[document])
            piece_ids, piece_marks = self.split.slice(begin, begin + take)
            ids[filled : filled + take] = piece_ids
            marks[filled : filled + take] = piece_marks
            at, filled, document = at + take, filled + take, document + 1

    def _documents(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (token start in the store, token start in this epoch's stream) of the epoch's documents in order."""
        known = self._epoch  # one reference: another thread may read another epoch meanwhile
        if known is None or known[0] != epoch:
            begin = np.append(np.asarray(self.split.document_starts(), dtype=np.int64), self.split.num_tokens)
            assert self._document_order_key is not None
            key = int(key_from(self._document_order_key, "documents", epoch)) & 0xFFFFFFFF
            order = KeyedPermutation(len(begin) - 1, key)(np.arange(len(begin) - 1, dtype=np.int64))
            lengths = np.diff(begin)[order]
            known = self._epoch = (epoch, begin[:-1][order], np.concatenate(([0], np.cumsum(lengths))))
        return known[1], known[2]


class RowReader:
    """Read rows in their order: place `p` of the whole run is a row of epoch `p // num_rows`, keyed by the seed.

    Args:
        view: what rows there are.
        name: the view's name, part of the key of every draw.
        seed: keys the order and the draws.
        shuffle: False reads rows as they lie (evaluation).
        draw_epochs: draws of so many epochs are used in turn; 0: each epoch has its own.
    """

    def __init__(
        self, view: View, *, name: str, seed: int, shuffle: bool = True, draw_epochs: int = 0
    ) -> None:
        self.draw_epochs = draw_epochs
        self.view = view
        self.name = name
        self.seed = seed
        self.shuffle = shuffle
        self._orders: dict[int, KeyedPermutation] = {}

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return self.view.num_rows

    def read(self, start: int, count: int) -> tuple[Rows, Draws]:
        """Return the rows at places start .. start + count - 1 of the run, and their draws."""
        return self.read_at(np.arange(start, start + count, dtype=np.int64))

    def read_at(self, places: npt.NDArray[np.int64]) -> tuple[Rows, Draws]:
        """Return the rows at these places of the run, and their draws."""
        epochs, within = place_of(places, self.num_rows)
        numbers = within.copy()
        if self.shuffle:
            for epoch in np.unique(epochs).tolist():
                chosen = epochs == epoch
                numbers[chosen] = self._order(epoch)(within[chosen])
        rows = self.view.rows(epochs, numbers)
        epochs_drawn = rows.epochs % self.draw_epochs if self.draw_epochs else rows.epochs
        return rows, Draws.for_rows(self.seed, self.name, epochs_drawn, rows.row_ids)

    def _order(self, epoch: int) -> KeyedPermutation:
        known = self._orders  # replaced, never changed: another thread may read another epoch meanwhile
        if epoch not in known:
            low = int(key_from(self.seed, self.name, "order", epoch)) & 0xFFFFFFFF
            high = int(key_from(self.seed, self.name, "order, high word", epoch)) & 0xFFFFFFFF
            before = {epoch - 1: known[epoch - 1]} if epoch - 1 in known else {}
            known = self._orders = {**before, epoch: KeyedPermutation(self.num_rows, (high << 32) | low)}
        return known[epoch]


def segments_of(marks: Tensor, lengths: Tensor) -> Tensor:
    """Number the documents within rows.

    Args:
        marks: (B, L) uint8.
        lengths: (B,) real tokens.

    Returns:
        (B, L) int32: 1 for the document a row begins with (whether its start lies in the row or before it), counting
        up at each document start; 0 past the end.
    """
    starts = ((marks & DOCUMENT) != 0).to(torch.int32)
    starts[:, 0] = 0
    segments = 1 + starts.cumsum(dim=1, dtype=torch.int32)
    inside = torch.arange(marks.shape[1], device=marks.device)[None, :] < lengths[:, None]
    return segments * inside.to(torch.int32)
