"""Say what can be had without a model, at the very targets a model is scored at: uniform, unigram, bigram, chance.

A loss means nothing by itself: it depends on the vocabulary and on the text. Beside these three it does. Counts come
from the training split, are taken in one pass over it, and only for the pairs that occur among the targets, so that
memory does not grow with the corpus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from seedbed.batch import Batch, Targets
from seedbed.data.views import TokenStream
from seedbed.errors import DataError, IncompatibleError
from seedbed.evaluation.intrinsic import EvaluationSet
from seedbed.objectives.base import Objective, Vocabulary

__all__ = ["Baselines", "corpus_baselines", "term_baselines"]

_CHUNK_TOKENS = 1 << 19
_STRENGTHS = tuple(float(round(10 ** (e / 4), 3)) for e in range(-4, 17))
"""Grid of k, 0.1 to 10,000: how many observations of a left token the unigram counts as."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """Losses that need no model, in nats a target.

    Attributes:
        uniform: every possible token equally likely: the loss of a model that knows nothing.
        unigram: each token as often as in the training text: of one that knows frequencies only.
        bigram: given the true token to the left as well; interpolated with the unigram.
        unigram_accuracy: share of targets that are the most frequent token.
        bigram_strength: the k that was fitted, see `corpus_baselines`.
        num_targets: targets scored (the sum of their weights).
        train_tokens: tokens counted.
    """

    uniform: float
    unigram: float
    bigram: float
    unigram_accuracy: float
    bigram_strength: float
    num_targets: float
    train_tokens: int

    def losses(self) -> dict[str, float]:
        """Return the three losses by name."""
        return {"uniform": self.uniform, "unigram": self.unigram, "bigram": self.bigram}


def term_baselines(
    objective: Objective, evaluation_set: EvaluationSet, train: TokenStream
) -> dict[str, float]:
    """Return the losses without a model for every term of an objective, in nats a target.

    Terms that predict tokens have `uniform`, `unigram` and `bigram`; terms that predict classes `chance`, the entropy of
    the classes among the targets (the best constant answer); others the objective's own `chance`, where it knows one.
    With several terms, names are prefixed `<term>.`, and bare `chance` is the weighted sum of the terms' unigram or
    chance, the figure the total loss stands beside; it is left out when a term has neither.
    """
    fixed = objective.for_evaluation()
    found: dict[str, dict[str, float]] = {}
    for term in fixed.terms:
        answer = fixed.answers.get(term, "tokens")
        if answer == "tokens":
            layout = sum(fixed.layout_nats(term, targets[term]) for _, targets in evaluation_set.batches)
            scored = corpus_baselines(evaluation_set, train, fixed.vocabulary, term=term, layout_nats=layout)
            found[term] = scored.losses()
        elif answer == "classes":
            found[term] = {"chance": _class_entropy(evaluation_set, term)}
        else:
            chance = fixed.chance(term)
            found[term] = {} if chance is None else {"chance": chance}
    if len(found) == 1:
        return next(iter(found.values()))
    flat = {f"{term}.{name}": value for term, losses in found.items() for name, value in losses.items()}
    floors = {term: losses.get("unigram", losses.get("chance")) for term, losses in found.items()}
    weights = fixed.weights(1.0)
    if all(floor is not None for floor in floors.values()):
        flat["chance"] = sum(weights[term] * (floor or 0.0) for term, floor in floors.items())
    return flat


def _class_entropy(evaluation_set: EvaluationSet, term: str) -> float:
    """Return the entropy of the classes among a term's targets, nats."""
    values, weights = [], []
    for _, targets in evaluation_set.batches:
        target = targets[term]
        values.append(target.values)
        weights.append(torch.ones(target.at.shape) if target.weights is None else target.weights)
    if not values or not float(torch.cat(weights).sum()):
        raise DataError(f"the evaluation has no targets for {term}.", hint="give more validation text")
    shares = torch.bincount(torch.cat(values), weights=torch.cat(weights).double())
    shares = shares[shares > 0] / shares.sum()
    return float(-(shares * shares.log()).sum())


def corpus_baselines(
    evaluation_set: EvaluationSet,
    train: TokenStream,
    vocabulary: Vocabulary,
    *,
    term: str | None = None,
    layout_nats: float = 0.0,
) -> Baselines:
    """Score uniform, unigram and interpolated bigram at the targets of an evaluation.

    Possible tokens are the ordinary ones of the vocabulary, and those special ones that occur among the targets (the
    separator, in causal models). With c counts of the training split among possible tokens, N their sum and V how many
    are possible:

        uniform  p(w)     = 1 / V
        unigram  p(w)     = (c(w) + 1) / (N + V)
        bigram   p(w | h) = lambda c(h, w) / c(h) + (1 - lambda) p(w),   lambda = c(h) / (c(h) + k)

    Reserved tokens among the targets (sentinels of spans) cost what a random layout costs, `layout_nats`, and nothing else.

    The left token h is the original one, also where the model sees a mask: masking is undone first. A row's first
    token has no left and gets the unigram. The bigram knows less than a masked model (nothing of the right side) and
    more (its left token is never hidden).

    BIAS: k is chosen from a grid on the targets themselves, which flatters the bigram by one fitted parameter.

    Args:
        evaluation_set: rows and targets, of any stream.
        train: the training split, read in chunks.
        vocabulary: sizes and special ids.
        term: which loss term's targets; the first when None.
        layout_nats: what the layout of these targets costs anybody, in all (`Objective.layout_nats`); added to each loss.

    Raises:
        DataError: there are no targets.
        IncompatibleError: the targets are not tokens.
    """
    left, values, weights = _pairs(evaluation_set, term)
    if values.size == 0:
        raise DataError("the evaluation has no targets.", hint="give more validation text")
    is_possible = np.ones(vocabulary.vocab_size, dtype=bool)
    is_possible[sorted(vocabulary.special_ids)] = False
    is_possible[values] = True

    queries, which = np.unique(left * vocabulary.vocab_size + values, return_inverse=True)
    tokens, lefts, pairs = _count(train, queries, is_possible)

    num_possible = int(is_possible.sum())
    unigram = (tokens[values] + 1.0) / (tokens.sum() + num_possible)
    seen = np.where(left >= 0, lefts[left], 0)
    together = np.where(left >= 0, pairs[which], 0)
    total = float(weights.sum())

    # Where sentinels stand is drawn, not written: frequencies say nothing of it, the layout's own price does.
    is_open = ~np.isin(values, np.array(vocabulary.unused_ids, dtype=np.int64))

    def mean_loss(probability: npt.NDArray[np.float64]) -> float:
        return float((layout_nats - (weights * is_open * np.log(probability)).sum()) / total)

    # lambda c(h, w) / c(h) + (1 - lambda) p(w), written without the division by a c(h) of 0
    bigrams = {k: mean_loss((together + k * unigram) / (seen + k)) for k in _STRENGTHS}
    strength = min(bigrams, key=bigrams.__getitem__)
    return Baselines(
        uniform=(layout_nats + math.log(num_possible) * float((weights * is_open).sum())) / total,
        unigram=mean_loss(unigram),
        bigram=bigrams[strength],
        unigram_accuracy=float(weights[values == int(tokens.argmax())].sum() / total),
        bigram_strength=strength,
        num_targets=total,
        train_tokens=train.num_tokens,
    )


def _pairs(
    evaluation_set: EvaluationSet, term: str | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the left token (-1: none), value and weight of all targets, those of weight 0 left out."""
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for batch, targets in evaluation_set.batches:
        target = targets[term if term is not None else next(iter(targets))]
        weight = torch.ones(target.at.shape) if target.weights is None else target.weights
        kept = weight > 0
        parts.append((_left_of(batch, target)[kept], target.values[kept], weight[kept].double()))
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros(0)
    lefts, values, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    return lefts.numpy(), values.numpy(), weights.numpy()


def _left_of(batch: Batch, targets: Targets) -> torch.Tensor:
    """Return the original token to the left of each target, (N,) int64; -1 for a row's first."""
    if targets.values.dtype.is_floating_point:
        raise IncompatibleError(
            "uniform, unigram and bigram are defined for targets that are tokens.",
            hint="name another term, or report this one without baselines",
        )
    if targets.stream == "decoder":  # inputs are shifted: a target's place holds the token before it
        assert batch.decoder_input_ids is not None
        left = batch.decoder_input_ids.flatten()[targets.at]
        return torch.where(targets.at % batch.decoder_input_ids.shape[1] == 0, -1, left)
    length = batch.input_ids.shape[1]
    original = batch.input_ids.flatten().clone()
    at = targets.at
    if targets.stream == "query":
        assert batch.query_at is not None
        offset = torch.arange(len(batch.query_at), device=at.device)[:, None] * length
        at = (batch.query_at + offset).flatten()[at]
    if batch.attention == "causal":  # shifted likewise
        left = original[at]
    else:
        original[at] = targets.values
        left = original[(at - 1).clamp(min=0)]
    return torch.where(at % length == 0, -1, left)


def _count(
    train: TokenStream, queries: npt.NDArray[np.int64], is_possible: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count possible tokens (V,), what stands left of one (V,), and the pairs asked for (len(queries),)."""
    size = is_possible.size
    tokens, lefts = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    pairs = np.zeros(queries.size, dtype=np.int64)
    # Most pairs of the text are not asked for: a small table rules most of them out at a tenth of a search's cost.
    low_bits = (1 << 22) - 1
    may_match = np.zeros(low_bits + 1, dtype=bool)
    may_match[queries & low_bits] = True
    previous = np.zeros(0, dtype=np.int64)
    for start in range(0, train.num_tokens, _CHUNK_TOKENS):
        chunk, _ = train.slice(start, min(start + _CHUNK_TOKENS, train.num_tokens))
        ids = np.concatenate([previous, chunk.astype(np.int64)])
        previous = ids[-1:]
        tokens += np.bincount(chunk, minlength=size)
        here = is_possible[ids[1:]]
        keys = (ids[:-1] * size + ids[1:])[here]
        lefts += np.bincount(ids[:-1][here], minlength=size)
        keys = keys[may_match[keys & low_bits]]
        found = np.searchsorted(queries, keys)
        found = found[queries[np.minimum(found, queries.size - 1)] == keys]
        pairs += np.bincount(found, minlength=queries.size)
    return np.where(is_possible, tokens, 0), lefts, pairs
