"""Heads that pretraining trains beside the language model's: about a pair of texts, and about each token.

`heads.py` holds those over the vocabulary. Labels are those of Hugging Face's classes, so that a written folder means there
what it means here: see `PAIR_LABELS` and `REPLACED_LABELS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from seedbed.errors import IncompatibleError
from seedbed.models.config import Activation, TransformerConfig
from seedbed.models.init import init_linear
from seedbed.models.layers.feed_forward import activate

__all__ = [
    "EXTRA_HEADS",
    "PAIR_LABELS",
    "REPLACED_LABELS",
    "Pooler",
    "ReplacedTokenHead",
    "SentencePairHead",
    "init_head",
    "make_extras",
]

PAIR_LABELS = {
    "next_sentence": ("B follows A", "B is from elsewhere"),
    "sentence_order": ("in order", "swapped"),
}
"""What label 0 and label 1 of a pair mean: BertForPreTraining's next sentence, AlbertForPreTraining's sentence order."""

REPLACED_LABELS = ("original", "replaced")
"""What label 0 and label 1 of a token mean (ElectraForPreTraining); the logit is that of label 1."""


class Pooler(nn.Module):
    """Turn the first token's features (N, D) into those of the row (N, D): dense, then tanh (BERT)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Return pooled features (N, D)."""
        return torch.tanh(self.dense(features))


class SentencePairHead(nn.Module):
    """Judge a pair of texts from the features (N, D) of its first token: logits (N, 2) of the labels in `PAIR_LABELS`.

    Source: BERT (1810.04805, section 3.1, next sentence) and ALBERT (1909.11942, section 3.1, sentence order).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pooler = Pooler(config)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, 2)."""
        logits: Tensor = self.classifier(self.pooler(features))
        return logits


class ReplacedTokenHead(nn.Module):
    """Judge each token from its features (N, D): the logit (N, 1) that it was replaced.

    Source: ELECTRA (2003.10555, section 2); the hidden layer and its activation (the trunk's) are those of its code.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, 1)."""
        logits: Tensor = self.classifier(activate(self.dense(features), self.activation))
        return logits


EXTRA_HEADS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "sentence_pair": SentencePairHead,
    "replaced_token": ReplacedTokenHead,
}
"""Heads a `LanguageModel` can carry as `extras`, by name."""


def init_head(module: nn.Module, config: TransformerConfig, seed: int) -> None:
    """Initialise every linear layer of a head in place, as the trunk's: `config.initialisation`, offsets 0.

    The same seed gives the same weights on every device, whatever was drawn before.
    """
    init_linear(module, config, seed=seed)


def make_extras(config: TransformerConfig, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return new heads by name, to be filled.

    Raises:
        IncompatibleError: a name is not in `EXTRA_HEADS`.
    """
    if unknown := sorted(set(names) - set(EXTRA_HEADS)):
        raise IncompatibleError(
            f"unknown heads {', '.join(unknown)}; known: {', '.join(EXTRA_HEADS)}.",
            hint="open the model with the version of seedbed that wrote it",
        )
    return {name: EXTRA_HEADS[name](config) for name in names}
