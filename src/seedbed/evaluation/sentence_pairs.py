"""Judge a model of sentence pairs on both of their tasks: its own and the other one.

Source: the cross-check of ALBERT, arXiv 1909.11942, section 4.6 and table 5: a model of next sentences tells topics apart and
does not know their order, a model of the order knows both better than chance. Both heads say 0 of text as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from seedbed.data.views import RowSource, TokenStream
from seedbed.errors import IncompatibleError
from seedbed.evaluation.intrinsic import build_evaluation_set, score
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.next_sentence import NextSentenceConfig
from seedbed.objectives.sentence_order import SentenceOrderConfig

if TYPE_CHECKING:
    from seedbed.models.language_model import LanguageModel

__all__ = ["judge_pairs"]


def judge_pairs(
    model: LanguageModel,
    tokens: TokenStream,
    vocabulary: Vocabulary,
    *,
    row_length: int,
    max_rows: int = 1000,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """Return accuracy, its standard error, loss (nats) and number of pairs, for "next_sentence" and "sentence_order".

    Pairs are the same for every model of a tokenizer and row length; half of them are swapped, or from elsewhere, so chance
    is 0.5.

    Args:
        model: with the head "sentence_pair".
        tokens: the text, best one the model was not trained on.
        vocabulary: of its tokenizer.
        row_length: tokens of a row, special ones included.
        max_rows: pairs of each kind at most, evenly spaced over the text.
        device: where to compute.
        compute_dtype: number type of the matrix products.

    Raises:
        IncompatibleError: the model has no head for pairs.
        DataError: the text has no pairs.
    """
    if "sentence_pair" not in model.extras:
        raise IncompatibleError(
            "this model has no head that judges pairs of sentences.",
            hint="train one with objective.name=sentence_order or next_sentence, or load a folder that has it",
        )
    modules = {"trunk": model.trunk, "sentence_pair": model.extras["sentence_pair"]}
    results: dict[str, dict[str, float]] = {}
    for config in (NextSentenceConfig(masked_lm=None), SentenceOrderConfig(masked_lm=None)):
        objective = config.build(vocabulary, row_length=row_length, is_segmented=False)
        objective.check(model.config)
        view = objective.for_evaluation().make_view(RowSource(tokens, split="validation"))
        pairs = build_evaluation_set(objective, view, max_rows=max_rows)
        scores = score(objective, modules, pairs, device=device, compute_dtype=compute_dtype)
        share = scores["accuracy"]
        results[config.name] = {
            "accuracy": share,
            "standard_error": math.sqrt(share * (1.0 - share) / pairs.num_rows),
            "loss": scores["loss"],
            "pairs": pairs.num_rows,
        }
    return results
