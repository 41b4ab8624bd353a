"""A trunk with its language-model head: what is trained, saved, loaded and used."""

from __future__ import annotations

from torch import Tensor, nn

from seedbed.batch import Batch, Hidden
from seedbed.errors import IncompatibleError
from seedbed.models.config import TransformerConfig
from seedbed.models.heads import LMHead, make_head
from seedbed.models.init import init_weights
from seedbed.models.transformer import Transformer

__all__ = ["LanguageModel", "build_model"]


class LanguageModel(nn.Module):
    """Bundle a trunk and its head. Without a head (an encoder-only checkpoint) it gives hidden states only."""

    def __init__(self, trunk: Transformer, head: LMHead | None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    @property
    def config(self) -> TransformerConfig:
        """Return the description of the trunk and head."""
        return self.trunk.config

    def forward(self, batch: Batch) -> Hidden:
        """Run the trunk without dropout."""
        hidden: Hidden = self.trunk(batch)
        return hidden

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (..., V) of features (..., D)."""
        if self.head is None:
            raise IncompatibleError(
                "this model has no language-model head.",
                hint="it gives hidden states only; train or load a head",
            )
        logits: Tensor = self.head(features)
        return logits

    def logits_at(self, hidden: Hidden, at: Tensor) -> Tensor:
        """Return logits (N, V) at flat positions (N,) of (B * T)."""
        return self.logits(hidden.last.flatten(0, 1)[at])


def build_model(config: TransformerConfig, *, seed: int) -> LanguageModel:
    """Return a new, initialised model; the same seed gives the same weights."""
    trunk = Transformer(config)
    head = make_head(trunk)
    init_weights(trunk, head, seed=seed)
    return LanguageModel(trunk, head)
