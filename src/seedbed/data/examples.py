"""Hold labelled examples as tokens in memory, and cut rows from them: texts, or pairs of texts, of unequal length.

A view of examples is a sibling of `views.WindowView`: row `r` is example `r`, so everything stays a pure function.
Padding appears here only, and only up to the longest example of the rows asked for together; `ExampleReader` keeps that
short by sorting the examples of a window by length. Special tokens are the objective's business. Files of examples are
read in `tasks/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from seedbed.data.draws import Draws
from seedbed.data.order import KeyedPermutation, place_of
from seedbed.data.views import RowReader, Rows
from seedbed.errors import DataError
from seedbed.hashing import key_from
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["ExampleReader", "ExampleTokens", "ExampleView", "Texts", "cut_longest_first"]

Int64s = npt.NDArray[np.int64]
_ENCODED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Texts:
    """Hold the tokens of many texts in one flat array.

    Attributes:
        ids: (n,) int32, all texts one after the other, without special tokens.
        starts: (texts + 1,) int64 where each begins; the last is n.
    """

    ids: npt.NDArray[np.int32]
    starts: Int64s

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> Self:
        """Encode texts; special tokens written in them are plain text."""
        parts: list[npt.NDArray[np.int32]] = []
        counts: list[int] = []
        for start in range(0, len(texts), _ENCODED_AT_ONCE):
            for ids in tokenizer.encode_batch(texts[start : start + _ENCODED_AT_ONCE]):
                parts.append(np.array(ids, dtype=np.int32))
                counts.append(len(ids))
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        return cls(flat, np.concatenate(([0], np.cumsum(counts, dtype=np.int64))))

    @property
    def lengths(self) -> Int64s:
        """Tokens of each text, (texts,) int64."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True, slots=True)
class ExampleTokens:
    """Hold tokenised examples.

    Attributes:
        first: the texts; prompts where there are answers.
        second: the second texts of pairs, or the answers; None where examples are single texts.
        labels: (n,) class numbers (int64) or scores (float32), or None.
    """

    first: Texts
    second: Texts | None = None
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32] | None = None

    @classmethod
    def encode(
        cls,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        labels: Sequence[int] | Sequence[float] | None = None,
    ) -> Self:
        """Tokenise examples.

        Args:
            tokenizer: of the model.
            texts: one for each example.
            pairs: their second texts (or answers), or None.
            labels: class numbers or scores; whole numbers become classes, others scores.
        """
        values: npt.NDArray[np.int64] | npt.NDArray[np.float32] | None = None
        if labels is not None:
            is_class = all(isinstance(label, int | np.integer) for label in labels)
            values = np.asarray(labels, dtype=np.int64) if is_class else np.asarray(labels, dtype=np.float32)
            assert len(values) == len(texts)
        assert pairs is None or len(pairs) == len(texts)
        second = None if pairs is None else Texts.encode(tokenizer, pairs)
        return cls(Texts.encode(tokenizer, texts), second, values)

    def __len__(self) -> int:
        return len(self.first)


class ExampleView:
    """Give examples as rows: the first text's tokens, then the second's.

    `Rows.first_lengths` says where the second text begins, `Rows.labels` what is right. Marks are all zero.

    Args:
        examples: what there is.
        max_tokens: tokens of a row at most, special tokens not counted; of a longer pair the longer text is cut, token by token
            from its end.
        is_apart: the two texts do not share a row (an encoder's and a decoder's); each is cut to `max_tokens`.

    Attributes:
        num_rows: examples.
        lengths: (n,) int64 tokens of each row, once cut.
        num_cut: examples that lost tokens.
        tokens_cut: how many, of `num_tokens`.
    """

    def __init__(self, examples: ExampleTokens, *, max_tokens: int, is_apart: bool = False) -> None:
        if len(examples) == 0:
            raise DataError("there are no examples.", hint="give files with labelled examples")
        if max_tokens < 1 + (examples.second is not None):
            raise DataError(
                f"{max_tokens} tokens are too few for an example.", hint="raise the maximum length"
            )
        self.examples = examples
        self.num_rows = len(examples)
        first = examples.first.lengths
        second = np.zeros_like(first) if examples.second is None else examples.second.lengths
        self._first: Int64s
        self._second: Int64s
        if is_apart:
            self._first, self._second = np.minimum(first, max_tokens), np.minimum(second, max_tokens)
        else:
            self._first, self._second = cut_longest_first(first, second, max_tokens)
        self.lengths: Int64s = self._first + self._second
        self.num_tokens = int(first.sum() + second.sum())
        self.num_cut = int((self.lengths < first + second).sum())
        self.tokens_cut = self.num_tokens - int(self.lengths.sum())

    def rows(self, epochs: Int64s, rows: Int64s) -> Rows:
        """Return rows by number, padded with 0 to the longest of them."""
        lengths, first = self.lengths[rows], self._first[rows]
        ids = np.zeros((len(rows), max(1, int(lengths.max()))), dtype=np.int64)
        column = np.arange(ids.shape[1])[None, :]
        is_first = column < first[:, None]
        is_second = (column < lengths[:, None]) & ~is_first
        texts = self.examples.first
        ids[is_first] = texts.ids[(texts.starts[rows][:, None] + column)[is_first]]
        if (pairs := self.examples.second) is not None:
            at = pairs.starts[rows][:, None] + column - first[:, None]
            ids[is_second] = pairs.ids[at[is_second]]
        labels = self.examples.labels
        return Rows(
            ids=torch.from_numpy(ids),
            marks=torch.zeros(ids.shape, dtype=torch.uint8),
            lengths=torch.from_numpy(lengths),
            row_ids=torch.from_numpy(rows.copy()),
            epochs=torch.from_numpy(epochs.copy()),
            is_full=bool((lengths == ids.shape[1]).all()),
            first_lengths=None if pairs is None else torch.from_numpy(first),
            labels=None if labels is None else torch.from_numpy(labels[rows]),
        )


class ExampleReader(RowReader):
    """Read examples in a keyed order in which those of a batch have like lengths.

    The permuted examples of an epoch are taken `batch_rows * window_batches` at a time; within such a window they are
    sorted by length and cut into batches, whose order is permuted again. So what place `p` holds is a pure function of
    (seed, epoch, p), every example comes once an epoch, and no batch holds the long ones of the whole set.

    Args:
        view: the examples.
        name: the view's name, part of the key of every draw.
        seed: keys the order and the draws.
        batch_rows: rows that are padded to one length.
        window_batches: batches sorted together; 1 does not sort.
    """

    def __init__(
        self, view: ExampleView, *, name: str, seed: int, batch_rows: int, window_batches: int = 16
    ) -> None:
        super().__init__(view, name=name, seed=seed)
        self._lengths = view.lengths
        self._batch = batch_rows
        self._window = batch_rows * window_batches
        self._last: tuple[tuple[int, int], Int64s] | None = None  # cache of one window

    def read_at(self, places: Int64s) -> tuple[Rows, Draws]:
        """Return the examples at these places of the run, and their draws."""
        epochs, within = place_of(places, self.num_rows)
        numbers = within.copy()
        for index, (epoch, place) in enumerate(zip(epochs.tolist(), within.tolist(), strict=True)):
            window = self._members(epoch, place // self._window)
            numbers[index] = window[place % self._window]
        rows = self.view.rows(epochs, numbers)
        return rows, Draws.for_rows(self.seed, self.name, rows.epochs, rows.row_ids)

    def _members(self, epoch: int, window: int) -> Int64s:
        """Return the examples of a window in the order they are read."""
        known = self._last  # one reference: another thread may read another window meanwhile
        if known is not None and known[0] == (epoch, window):
            return known[1]
        start = window * self._window
        members = self._order(epoch)(
            np.arange(start, min(start + self._window, self.num_rows), dtype=np.int64)
        )
        members = members[np.lexsort((members, self._lengths[members]))]
        num_full = len(members) // self._batch
        if num_full > 1:  # a batch that is not full stays last, so that the others keep their bounds
            key = int(key_from(self.seed, self.name, "batches", epoch, window)) & 0xFFFFFFFF
            order = KeyedPermutation(num_full, key)(np.arange(num_full, dtype=np.int64))
            full = members[: num_full * self._batch].reshape(num_full, self._batch)[order].reshape(-1)
            members = np.concatenate((full, members[num_full * self._batch :]))
        self._last = ((epoch, window), members)
        return members


def cut_longest_first(first: Int64s, second: Int64s, max_tokens: int) -> tuple[Int64s, Int64s]:
    """Return the lengths of pairs once they fit: the longer text loses tokens until both are equal, then both in turn.

    Args:
        first: (n,) tokens of the first texts.
        second: (n,) of the second; zeros for single texts.
        max_tokens: for both together.

    Of two equal texts the first keeps the odd token, as in Hugging Face's `longest_first`.
    """
    half = max_tokens // 2
    both_long = (first > half) & (second > half)
    cut_first = np.where(
        both_long, max_tokens - half, np.minimum(first, max_tokens - np.minimum(second, half))
    )
    cut_second = np.where(
        both_long, half, np.minimum(second, max_tokens - np.minimum(first, max_tokens - half))
    )
    fits = first + second <= max_tokens
    return np.where(fits, first, cut_first), np.where(fits, second, cut_second)
