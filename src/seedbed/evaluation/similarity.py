"""Judge sentence vectors: do their cosines rank pairs of sentences as people do, and how do the vectors lie.

Source: STS-B (D. Cer et al., arXiv 1708.00055), Spearman over all pairs of a file, as SimCSE (2104.08821, appendix B) argues for;
alignment and uniformity: T. Wang and P. Isola, arXiv 2005.10242, as in SimCSE's section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.data.examples import ExampleTokens, ExampleView
from seedbed.errors import DataError, IncompatibleError
from seedbed.metrics import METRICS
from seedbed.models.language_model import LanguageModel
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.task_rows import frame_of, frame_rows, mean_features
from seedbed.progress import Progress, silent
from seedbed.runtime import autocast
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["POOLINGS", "Pooling", "SentenceVectors", "poolings_of", "score_similarity", "sentence_vectors"]

Pooling = Literal["cls", "mean", "last"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last")

_BATCH_TOKENS = 8192
_MOST_SENTENCES = 4096
"""Of which uniformity is taken: their pairs are looked at all together."""
_POSITIVE = 0.8
"""Share of the highest score above which a pair counts as meaning the same (SimCSE: more than 4 of 5)."""


@dataclass(frozen=True, slots=True)
class SentenceVectors:
    """Hold vectors of texts.

    Attributes:
        by_pooling: (N, D) float32 each, not normalised.
        num_cut: texts that were longer than the model reads and lost their end.
    """

    by_pooling: dict[Pooling, Tensor]
    num_cut: int


def poolings_of(model: LanguageModel) -> tuple[Pooling, ...]:
    """Return the vectors a model can give: a decoder's first token has seen nothing of the text."""
    return ("mean", "last") if model.config.is_causal else ("cls", "mean")


def sentence_vectors(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    poolings: Sequence[Pooling] | None = None,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> SentenceVectors:
    """Return the vectors of texts by every pooling, from one pass; texts of like length are read together.

    Raises:
        IncompatibleError: an encoder-decoder, or a pooling that sees nothing.
    """
    config = model.config
    if config.stack == "encoder_decoder":
        raise IncompatibleError(
            "an encoder-decoder has no vector of a sentence here.", hint="give an encoder or a decoder"
        )
    wanted = tuple(poolings or poolings_of(model))
    if config.is_causal and "cls" in wanted:
        raise IncompatibleError(
            "a decoder's first token has seen nothing of the text.", hint="--pooling last, or mean"
        )
    frame = frame_of(Vocabulary.of(tokenizer), is_causal=config.is_causal)
    view = ExampleView(
        ExampleTokens.encode(tokenizer, texts),
        max_tokens=config.max_length - frame.num_special(is_pair=False),
    )
    found = {pooling: torch.zeros(len(texts), config.hidden_size) for pooling in wanted}
    order = np.argsort(view.lengths, kind="stable").astype(np.int64)
    device_type, start = torch.device(device).type, 0
    while start < len(order):
        rows = _batch_rows(view.lengths[order[start:]])
        chosen = order[start : start + rows]
        batch, sizes = frame_rows(view.rows(np.zeros_like(chosen), chosen), frame)
        with (
            torch.no_grad(),
            autocast(device_type, compute_dtype),
        ):
            batch = batch.to(device)
            hidden = model(batch).last
        hidden = hidden.float()
        at = torch.from_numpy(chosen)
        for pooling in wanted:
            if pooling == "mean":
                vectors = mean_features(hidden, batch)
            else:
                column = torch.zeros_like(sizes) if pooling == "cls" else sizes - 1
                vectors = hidden[torch.arange(len(sizes)), column.to(hidden.device)]
            found[pooling][at] = vectors.cpu()
        start += rows
        progress("similarity", done=start, total=len(order), unit="texts")
    return SentenceVectors(found, view.num_cut)


def score_similarity(first: Tensor, second: Tensor, scores: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Compare the cosines of pairs with people's scores.

    Args:
        first: (N, D) vectors of the pairs' first sentences.
        second: (N, D) of their second ones.
        scores: (N,) how alike people find them; higher is more alike.

    Returns:
        `spearman` and `pearson` of the cosines; `alignment`, the mean squared distance of pairs scored above 80 % of the highest
        score (None if there are none); `uniformity`, ln of the mean of exp(-2 d^2) over all pairs of the first 4,096 sentences.
    """
    if len(scores) < 2:
        raise DataError(f"{len(scores)} pairs have no rank correlation.", hint="give files with more pairs")
    a, b = F.normalize(first.double(), dim=1), F.normalize(second.double(), dim=1)
    cosines = (a * b).sum(dim=1).numpy()
    positive = torch.from_numpy(scores > _POSITIVE * scores.max())
    distance = (a - b).square().sum(dim=1)
    every = torch.cat([a, b])[:_MOST_SENTENCES]
    squares = torch.pdist(every).square()
    return {
        "spearman": METRICS["spearman"].score(scores, cosines),
        "pearson": METRICS["pearson"].score(scores, cosines),
        "alignment": float(distance[positive].mean()) if positive.any() else None,
        "uniformity": float((-2 * squares).logsumexp(dim=0)) - math.log(len(squares)),
    }


def _batch_rows(lengths: npt.NDArray[np.int64]) -> int:
    """Return how many of the texts, shortest first, fit a batch when padded to the longest of them."""
    sizes = (np.arange(len(lengths[:_BATCH_TOKENS])) + 1) * (lengths[:_BATCH_TOKENS] + 2)
    return max(1, int(np.searchsorted(sizes, _BATCH_TOKENS, side="right")))
