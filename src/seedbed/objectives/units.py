"""Choose which tokens of a row are hidden: single ones, or units (words, entries of a lexicon, spans of words).

All choices are ranks of draws, so the number of targets of a row is known beforehand, shapes are static and nothing
depends on the batch. A unit is taken whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seedbed.data.draws import Draws
from seedbed.data.store import SPECIAL, WORD
from seedbed.data.views import Rows

__all__ = ["as_columns", "choose_spans", "choose_targets", "first_of_unit", "geometric_shares", "word_begins"]


def word_begins(rows: Rows) -> Tensor:
    """Return where words begin, (B, L) bool; the first token of a row begins one even where the row cuts a word."""
    begins = (rows.marks & (WORD | SPECIAL)) != 0
    begins[:, 0] = True
    return begins


def first_of_unit(begins: Tensor) -> Tensor:
    """Return the place (B, L) int64 of the first token of the unit each token belongs to."""
    position = torch.arange(begins.shape[1])
    return torch.where(begins, position, 0).cummax(dim=1).values


def choose_targets(
    rows: Rows, draws: Draws, *, rate: float, begins: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Choose which places of each row are predicted.

    Every full row gets the same number, `round(rate * L)` and at least 1, so that shapes are static. Tokens (or units)
    are taken in the order of their draws. A unit that no longer fits is passed over for the next that does; when none
    does, and in rows shorter than L, places of weight 0 fill up.

    Args:
        rows: the rows; separators are never chosen.
        draws: their draws.
        rate: share of the tokens.
        begins: (B, L) bool, where units begin, `word_begins` or coarser; None: every token is a unit.

    Returns:
        `column` (B, n) int64 ascending within the weighted ones, and `weights` (B, n) float32, or None if all are 1.
    """
    num_rows, length = rows.shape
    position = torch.arange(length)
    allowed, wanted, count = _room(rows, rate)

    score = draws.positions("masked_lm choice", length).long() + 2**31  # uniform in [0, 2^32)
    if begins is not None:
        first = first_of_unit(begins)
        size = torch.zeros_like(first).scatter_add_(1, first, torch.ones_like(first)).gather(1, first)
        # One score a unit; ties between units broken by place.
        score = score.gather(1, first) * length + first
    else:
        size = torch.ones(num_rows, length, dtype=torch.int64)
        score = score * length + position
    score = torch.where(allowed, score, torch.iinfo(torch.int64).max)

    # Whole units in the order of their draws, while they fit.
    order = score.argsort(dim=1, stable=True)
    if begins is not None:
        rank = torch.arange(1, length + 1)
        ordered = score.gather(1, order)
        is_last = torch.ones_like(ordered, dtype=torch.bool)
        is_last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
        end = (
            torch.where(is_last, rank, length + 1).flip(1).cummin(dim=1).values.flip(1)
        )  # rank where its unit ends
        taken = torch.zeros_like(allowed).scatter(1, order, end <= wanted[:, None]) & allowed
        for _ in range(length):
            missing = wanted - taken.sum(dim=1)
            fits = allowed & ~taken & (size <= missing[:, None])
            best = torch.where(fits, score, torch.iinfo(torch.int64).max).min(dim=1).values
            if not fits.any():
                break
            taken |= fits & (score == best[:, None])
    else:
        taken = torch.zeros_like(allowed).scatter(1, order, position[None, :] < wanted[:, None]) & allowed
    return as_columns(taken, count)


def choose_spans(
    rows: Rows, draws: Draws, *, rate: float, shares: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    """Choose spans of whole words until each row has its number of targets.

    Words are tried in the order of their draws; one that is not hidden yet begins a span, whose length in words is drawn
    by `shares`. A span ends early at a separator, at a word already hidden, at the end of the row, and where the next
    word would be more than the row's number of targets.

    Args:
        rows: the rows; separators are never chosen.
        draws: their draws.
        rate: share of the tokens.
        shares: probabilities of 1, 2, ... words; they sum to 1.

    Returns:
        As `choose_targets`.
    """
    num_rows, length = rows.shape
    allowed, wanted, count = _room(rows, rate)
    begins = word_begins(rows) | (torch.arange(length)[None, :] >= rows.lengths[:, None])
    word = begins.long().cumsum(dim=1) - 1  # (B, L) number of each token's word
    num_words = int(word[:, -1].max()) + 1
    longest = len(shares)

    # Where word w begins, (B, W + longest + 1), L behind the last; and whether it can be hidden.
    start = torch.full((num_rows, num_words + longest + 1), length)
    place = torch.arange(length).expand(num_rows, length)
    start.scatter_reduce_(1, word, place, "amin")
    is_free = torch.zeros(start.shape, dtype=torch.bool).scatter(1, word, allowed)

    # Words in the order of their draws, and the length each would begin.
    score = draws.positions("masked_lm span start", num_words).long() + 2**31
    score = torch.where(is_free[:, :num_words], score * num_words + torch.arange(num_words), _LAST)
    order = score.argsort(dim=1, stable=True)
    drawn = draws.positions("masked_lm span length", num_words).long() + 2**31
    bounds = (torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1] * 2**32).round().long()
    lengths = 1 + torch.bucketize(drawn, bounds, right=True)

    is_hidden = torch.zeros_like(is_free)
    missing = torch.minimum(wanted, allowed.sum(dim=1))
    step = torch.arange(longest)
    for rank in range(num_words):
        first = order[:, rank, None]
        behind = first + step  # (B, longest) the words a span from here could hold
        tokens = start.gather(1, behind + 1) - start.gather(1, first)
        fits = is_free.gather(1, behind) & (tokens <= missing[:, None]) & (step < lengths.gather(1, first))
        fits = fits.long().cumprod(dim=1).bool()  # up to the first word that does not
        is_hidden.scatter_(1, behind, is_hidden.gather(1, behind) | fits)
        is_free.scatter_(1, behind, is_free.gather(1, behind) & ~fits)
        missing = missing - torch.where(fits, tokens, 0).amax(dim=1)
        if not missing.any():
            break
    return as_columns(is_hidden.gather(1, word) & allowed, count)


def geometric_shares(p: float, longest: int) -> list[float]:
    """Return the probabilities of 1 .. longest under a geometric distribution without its tail.

    The mean for p = 0.2 and 10 is 3.80, the figure of SpanBERT (section 3.1, "clipped"): lengths beyond are drawn again,
    as in its code, not cut to 10.
    """
    shares = [p * (1.0 - p) ** i for i in range(longest)]
    return [share / sum(shares) for share in shares]


def as_columns(taken: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """Return the places of `taken` (B, L) as columns (B, count), with weights where a row has fewer."""
    column = (~taken).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    weights = taken.gather(1, column).float()
    return column, None if bool(weights.all()) else weights


_LAST = torch.iinfo(torch.int64).max


def _room(rows: Rows, rate: float) -> tuple[Tensor, Tensor, int]:
    """Return what may be hidden (B, L), how many tokens of each row are wanted (B,), and the most of them."""
    length = rows.shape[1]
    count = max(1, round(rate * length))
    allowed = (torch.arange(length)[None, :] < rows.lengths[:, None]) & ((rows.marks & SPECIAL) == 0)
    wanted = torch.clamp((rate * rows.lengths.double()).round().long(), min=1).clamp(max=count)
    return allowed, wanted, count
