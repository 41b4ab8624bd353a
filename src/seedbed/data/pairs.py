"""Cut pairs of runs of whole sentences from the token store: rows for next-sentence and sentence-order prediction.

A row belongs to a place in a document; from there on, as many whole sentences as fit are cut in two at a sentence. What
the second part becomes (the true one, one from elsewhere, or both exchanged) is drawn. Everything is a pure function of
(seed, epoch, row), found by arithmetic and one look at the marks around the place.

Memory is 24 bytes for each document with two sentences or more, whatever its length; sentences are not tabled. The marks
are read once when the view is made.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from seedbed.data.draws import Draws
from seedbed.data.store import SENTENCE, SPECIAL
from seedbed.data.views import Rows, TokenStream
from seedbed.errors import DataError

__all__ = ["PairKind", "SentencePairView"]

PairKind = Literal["next_sentence", "sentence_order"]

_logger = logging.getLogger(__name__)

_SCAN_TOKENS: Final = 1 << 20
_TRIES: Final = 4
"""Places tried for a second part from elsewhere that fills the row with whole sentences; else the nearest is taken."""

# Columns of a row's draws
_LABEL, _CUT, _IS_SHORT, _SHORT, _ELSEWHERE = range(5)


@dataclass(frozen=True, slots=True)
class _Part:
    """A run of tokens first .. last - 1 of the split."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


class SentencePairView:
    """Cut rows of two runs of whole sentences, at most `length` tokens together.

    Label 0 is the text as it stands; label 1, half of the rows, is a second part from another document (`next_sentence`), or
    the two parts exchanged (`sentence_order`). `Rows.first_lengths` says where the second part begins, `Rows.labels` the label.

    Documents are cut at other places in each epoch. A run that reaches the end of its document before the row is full begins
    earlier instead, so rows are short only by less than a sentence, or as a whole document is. A sentence is cut only where
    two do not fit a row: then the longer part loses its outer end, whatever the label.

    Source: BERT (1810.04805, appendix A.2) and ALBERT (1909.11942, section 3.1) with their data code. Differs from it: rows
    hold whole sentences only, since a part cut in the middle tells which end of it was text; a second part from elsewhere
    comes from any document, not from those of its file; no sentence is put back, and rows near the end of a document overlap
    instead of being short.

    Attributes:
        num_rows: rows of an epoch, one for each `length` tokens of a document (at least one).
        num_documents: documents used.
        passed_over: documents of fewer than two sentences.
    """

    def __init__(
        self, tokens: TokenStream, *, length: int, kind: PairKind, seed: int, short_rate: float = 0.1
    ) -> None:
        """Count sentences.

        Args:
            tokens: the split.
            length: L, tokens of both parts together.
            kind: what label 1 is.
            seed: keys what is drawn.
            short_rate: share of rows that are meant to be shorter, uniform in length.

        Raises:
            DataError: no document has two sentences, or only one does and label 1 needs another.
        """
        starts = np.asarray(tokens.document_starts(), np.int64)
        ends = np.append(starts[1:], tokens.num_tokens) - 1  # the separator is no part of a document
        is_used = _count_sentences(tokens, starts) >= 2
        self.num_documents = int(is_used.sum())
        self.passed_over = len(starts) - self.num_documents
        if self.num_documents < (2 if kind == "next_sentence" else 1):
            raise DataError(
                f"pairs of sentences need documents of two sentences or more; this split has {self.num_documents} of"
                f" {len(starts)}.",
                hint="keep the lines of a document together (corpus.documents), or choose objective.name=masked_lm",
            )
        if self.passed_over:
            _logger.warning(
                "%d of %d documents have fewer than two sentences and give no pairs",
                self.passed_over,
                len(starts),
            )
        self._tokens = tokens
        self._length = length
        self._kind = kind
        self._seed = seed
        self._short_rate = short_rate
        self._starts, self._ends = starts[is_used], ends[is_used]
        rows = np.maximum(1, np.ceil((self._ends - self._starts) / length - 0.25)).astype(np.int64)
        self._rows = np.concatenate(([0], np.cumsum(rows)))
        self.num_rows = int(self._rows[-1])

    def rows(self, epochs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Rows:
        """Return the rows with these numbers."""
        epochs_, rows_ = torch.from_numpy(epochs.copy()), torch.from_numpy(rows.copy())
        draws = Draws.for_rows(self._seed, "sentence pairs", epochs_, rows_)
        drawn = (draws.positions("pair", _ELSEWHERE + 2 * _TRIES).long() + 2**31).tolist()
        documents = np.searchsorted(self._rows, rows, side="right") - 1
        shifts = Draws.for_rows(self._seed, "sentence pairs, document", epochs_, torch.from_numpy(documents))
        shift = (shifts.rows("shift").long() + 2**31).tolist()

        ids = np.zeros((len(rows), self._length), np.int64)
        marks = np.zeros((len(rows), self._length), np.uint8)
        lengths, firsts, labels = (np.zeros(len(rows), np.int64) for _ in range(3))
        for index, (document, row) in enumerate(zip(documents.tolist(), rows.tolist(), strict=True)):
            parts, labels[index] = self._pair(document, row, drawn[index], shift[index])
            at = 0
            for part in parts:
                ids[index, at : at + len(part)], marks[index, at : at + len(part)] = self._tokens.slice(
                    part.first, part.last
                )
                at += len(part)
            lengths[index], firsts[index] = at, len(parts[0])
        return Rows(
            ids=torch.from_numpy(ids),
            marks=torch.from_numpy(marks),
            lengths=torch.from_numpy(lengths),
            row_ids=rows_,
            epochs=epochs_,
            is_full=bool((lengths == self._length).all()),
            first_lengths=torch.from_numpy(firsts),
            labels=torch.from_numpy(labels),
        )

    def _pair(self, document: int, row: int, drawn: list[int], shift: int) -> tuple[tuple[_Part, _Part], int]:
        """Return the parts of a row in the order they are read, and the label; `drawn` and `shift` in [0, 2^32)."""
        begin, end = int(self._starts[document]), int(self._ends[document])
        first_row, next_row = int(self._rows[document]), int(self._rows[document + 1])
        size, number, count = end - begin, row - first_row, next_row - first_row
        stride = size // count
        at = begin + max(0, number * stride + _scaled(shift, stride) - stride // 2)
        room = self._length
        if drawn[_IS_SHORT] < round(self._short_rate * 2**32):
            room = 2 + _scaled(drawn[_SHORT], self._length - 1)

        # Two or more sentences from `at` on, as many as fit; cut in two at one of them.
        bounds = self._bounds(at, begin, end, room, least=2)
        cut = 1 + _scaled(drawn[_CUT], len(bounds) - 2)
        one, other = _Part(bounds[0], bounds[cut]), _Part(bounds[cut], bounds[-1])
        label = int(drawn[_LABEL] < 2**31)
        if label and self._kind == "sentence_order":
            one, other = other, one
        elif label:
            # As long as the true one could be: the length of a row must not tell.
            whole_document = bounds[0] == begin and bounds[-1] == end
            space = max(len(other), 0 if whole_document else room - len(one))
            other = self._elsewhere(document, space, drawn[_ELSEWHERE:])
            fitting = (bound for bound in bounds[:cut] if one.last - bound + len(other) <= self._length)
            one = _Part(next(fitting, bounds[cut - 1]), one.last)
        return self._fitted(one, other), label

    def _bounds(self, at: int, begin: int, end: int, room: int, *, least: int) -> list[int]:
        """Return where the sentences of a run begin, and its end: those from `at` that fit, `least` of them in any case."""
        stop = min(end, at + 2 * self._length)
        bounds = self._sentences(at, stop)
        if stop == end:
            bounds.append(end)
        last = _last_that_fits(bounds, room)
        reaches_end = last > 0 and bounds[last] == end
        if len(bounds) <= least or (reaches_end and bounds[0] > begin and end - bounds[0] < room):
            # Near the end of the document, or beside very long sentences: look at the whole of it.
            bounds = [*self._sentences(begin, end), end]
            first = min(int(np.searchsorted(bounds, at)), len(bounds) - 1 - least)
            last = first + _last_that_fits(bounds[first:], room)
            while bounds[last] == end and first > 0 and end - bounds[first - 1] <= room:
                first -= 1
            bounds, last = bounds[first:], last - first
        return bounds[: max(least, last) + 1]

    def _elsewhere(self, document: int, room: int, drawn: list[int]) -> _Part:
        """Return a run of whole sentences from another document, from anywhere in it, as long as there is room."""
        found: _Part | None = None
        for trial in range(_TRIES):
            other = _scaled(drawn[2 * trial], self.num_documents - 1)
            other += other >= document
            begin, end = int(self._starts[other]), int(self._ends[other])
            bounds = self._bounds(
                begin + _scaled(drawn[2 * trial + 1], end - begin), begin, end, room, least=1
            )
            run = _Part(bounds[0], bounds[-1])
            if len(run) <= room and end - begin >= room:
                return run
            # Second best: a whole document, the longer the better; then what is longer than the room, the shorter.
            found = max(found or run, run, key=lambda part: (len(part) <= room, -abs(room - len(part))))
        assert found is not None
        return found

    def _sentences(self, start: int, stop: int) -> list[int]:
        """Return where sentences begin in tokens start .. stop - 1."""
        _, marks = self._tokens.slice(start, stop)
        return (np.flatnonzero((marks & SENTENCE) != 0) + start).tolist()

    def _fitted(self, one: _Part, other: _Part) -> tuple[_Part, _Part]:
        """Cut the outer ends of parts that are too long together, the longer one first."""
        half = self._length // 2
        first = min(len(one), max(self._length - len(other), half))
        second = min(len(other), self._length - first)
        return _Part(one.last - first, one.last), _Part(other.first, other.first + second)


def _count_sentences(tokens: TokenStream, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sentences of every document; reads all marks once, in chunks."""
    counts = np.zeros(len(starts), np.int64)
    for begin in range(0, tokens.num_tokens, _SCAN_TOKENS):
        _, marks = tokens.slice(begin, min(begin + _SCAN_TOKENS, tokens.num_tokens))
        places = np.flatnonzero(((marks & SENTENCE) != 0) & ((marks & SPECIAL) == 0)) + begin
        if len(places):
            documents = np.searchsorted(starts, places, side="right") - 1
            low = int(documents[0])
            found = np.bincount(documents - low)
            counts[low : low + len(found)] += found
    return counts


def _last_that_fits(bounds: list[int], room: int) -> int:
    """Return the last index whose bound is at most `room` behind the first; 0 where none is."""
    return int(np.searchsorted(bounds, bounds[0] + room, side="right")) - 1 if bounds else 0


def _scaled(draw: int, bound: int) -> int:
    """Return an integer in [0, bound) of a draw in [0, 2^32)."""
    return draw * bound >> 32
