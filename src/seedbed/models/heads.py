"""Turn hidden states into logits over the vocabulary, at the places asked for only."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.config import TransformerConfig
from seedbed.models.layers.feed_forward import activate
from seedbed.models.layers.norm import make_norm
from seedbed.models.trunks import Trunk

__all__ = ["CausalLMHead", "LMHead", "MaskedLMHead", "limit_logits", "make_head"]


class LMHead(nn.Module):
    """Project features (N, D) to logits (N, V).

    A tied head holds the very Parameter of the token embedding, so an optimizer that reads `parameters()` of both sees
    it once.

    Attributes:
        logits_bytes: float32 logits a loss may hold at a time, see `limit_logits`; 0: all.
    """

    logits_bytes: int = 0
    loss_kernel: Callable[..., tuple[Tensor, Tensor]] | None = None
    """What computes the loss of a portion of logits, where it is compiled."""

    def __init__(self, config: TransformerConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.weight = (
            embedding.weight if config.tie_embeddings else nn.Parameter(torch.empty_like(embedding.weight))
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None

    def transform(self, features: Tensor) -> Tensor:
        """Return the features the matrix is applied to, for losses that fuse the product (and then apply `cap`)."""
        return features if self.config.head_scale == 1.0 else features * self.config.head_scale

    def cap(self, logits: Tensor) -> Tensor:
        """Return logits held within +-c where the config has a `logit_softcap` c."""
        limit = self.config.logit_softcap
        return limit * torch.tanh(logits / limit) if limit else logits

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (..., V) of features (..., D)."""
        return self.cap(F.linear(self.transform(features), self.weight, self.bias))


class CausalLMHead(LMHead):
    """The plain matrix of GPT-2, Llama, T5 and BART."""


class MaskedLMHead(LMHead):
    """The head of BERT and its kin: dense, activation and norm (where the config has them), then the matrix.

    Where embeddings are factorised the dense layer brings features back to their width E (ALBERT, ELECTRA).
    """

    def __init__(self, config: TransformerConfig, embedding: nn.Embedding) -> None:
        super().__init__(config, embedding)
        has = config.head_transform
        width = config.embedding_width
        self.dense = nn.Linear(config.hidden_size, width, bias=config.head_transform_bias) if has else None
        self.norm = make_norm(config, width) if has else None

    def transform(self, features: Tensor) -> Tensor:
        """Return the features the matrix is applied to."""
        if self.dense is not None and self.norm is not None:
            features = self.norm(activate(self.dense(features), self.config.head_activation))
        return super().transform(features)


def make_head(trunk: Trunk) -> LMHead:
    """Return the head that belongs to this kind of trunk, tied to its embedding if the config says so."""
    kind = MaskedLMHead if trunk.config.stack == "encoder" else CausalLMHead
    return kind(trunk.config, trunk.embedding.token)


def limit_logits(module: nn.Module, num_bytes: int) -> None:
    """Let losses over the vocabulary hold so many bytes of float32 logits at a time; 0: all. Only rounding depends on it."""
    for head in module.modules():
        if isinstance(head, LMHead):
            head.logits_bytes = num_bytes
