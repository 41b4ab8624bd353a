"""Say at which tokens a model does better or worse: the loss of an evaluation by how common a target is, and by what it is.

A slice is a part of the vocabulary, so losses are kept as sums by token and shared out afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from seedbed.data.views import TokenStream
from seedbed.tokenizer.chinese import HAN
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["TokenLosses", "by_slice", "count_tokens", "vocabulary_slices"]

_CHUNK_TOKENS = 1 << 20
_RANKS: Final = (100, 1000)
_HAS_HAN: Final = re.compile(f"[{HAN}]")
_BEGINS: Final = ("\u0120", "\u2581")
"""What a byte-level vocabulary and one of pieces write for the space before a word."""

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class TokenLosses:
    """Sums of losses and of weights by target token.

    Attributes:
        losses: (V,) float64, nats.
        weights: (V,) float64; the number of targets where none is weighted.
    """

    vocab_size: int
    losses: npt.NDArray[np.float64] = field(init=False)
    weights: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.losses = np.zeros(self.vocab_size)
        self.weights = np.zeros(self.vocab_size)

    def add(self, values: Tensor, losses: Tensor, weights: Tensor | None) -> None:
        """Add targets.

        Args:
            values: (N,) int64 token ids.
            losses: (N,) nats, not weighted.
            weights: (N,), or None where all are 1.
        """
        ids, nats = values.cpu().numpy(), losses.double().cpu().numpy()
        weight = np.ones(len(ids)) if weights is None else weights.double().cpu().numpy()
        self.losses += np.bincount(ids, weights=nats * weight, minlength=self.vocab_size)
        self.weights += np.bincount(ids, weights=weight, minlength=self.vocab_size)


def count_tokens(stream: TokenStream, vocab_size: int) -> Ints:
    """Return how often each token stands in a text, (V,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, stream.num_tokens, _CHUNK_TOKENS):
        ids, _ = stream.slice(start, min(start + _CHUNK_TOKENS, stream.num_tokens))
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def vocabulary_slices(tokenizer: Tokenizer, counts: Ints) -> dict[str, dict[str, Ints]]:
    """Return the ids of each slice, by partition and name.

    Args:
        tokenizer: of the model.
        counts: (V,) how often each token stands in the training text.

    Returns:
        `by how common`: the 100 commonest tokens of the training text, the next 900, the rest. `by kind`: tokens that begin
        a word, that continue one, Chinese, numbers, signs, and special ones. Each partition covers the vocabulary once.
        In a byte-level vocabulary the first word of a line has no space before it, and counts as one that is continued.
    """
    order = np.argsort(-counts, kind="stable")
    commonest, common = _RANKS
    frequency = {
        f"the {commonest} commonest": order[:commonest],
        f"the next {common - commonest}": order[commonest:common],
        "rarer": order[common:],
    }
    kinds: dict[str, list[int]] = {}
    special = set(tokenizer.special_ids)
    marks_inside = tokenizer.algorithm == "wordpiece"
    for token_id in range(tokenizer.vocab_size):
        kind = "special" if token_id in special else _kind(tokenizer, token_id, marks_inside=marks_inside)
        kinds.setdefault(kind, []).append(token_id)
    return {
        "by how common": {name: ids for name, ids in frequency.items() if len(ids)},
        "by kind": {name: np.array(ids, dtype=np.int64) for name, ids in sorted(kinds.items())},
    }


def _kind(tokenizer: Tokenizer, token_id: int, *, marks_inside: bool) -> str:
    written = tokenizer.token(token_id)
    text = tokenizer.decode([token_id], skip_special=False).removeprefix("##").strip()
    if _HAS_HAN.search(text):
        return "Chinese"
    if not any(c.isalnum() for c in text):
        return "signs"  # and parts of characters, which decode to none
    if text.isnumeric():
        return "numbers"
    begins = not written.startswith("##") if marks_inside else written.startswith(_BEGINS)
    return "begins a word" if begins else "continues a word"


def by_slice(
    found: TokenLosses, slices: Mapping[str, Mapping[str, Ints]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return loss (nats a target) and targets of each slice that has any, by partition and name."""
    told: dict[str, dict[str, dict[str, float]]] = {}
    for partition, parts in slices.items():
        for name, ids in parts.items():
            if (targets := float(found.weights[ids].sum())) > 0:
                loss = float(found.losses[ids].sum()) / targets
                told.setdefault(partition, {})[name] = {"loss": loss, "targets": targets}
    return told
