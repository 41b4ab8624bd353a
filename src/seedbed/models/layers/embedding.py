"""Turn ids into the first hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seedbed.models.config import TransformerConfig
from seedbed.models.layers.norm import make_norm
from seedbed.models.layers.position import sinusoidal_table

__all__ = ["Embedding", "detach_tables", "share_tables"]


class Embedding(nn.Module):
    """Sum token, position and token-type embeddings, then normalise where the config says so.

    Tables are E wide, which is D unless the config factorises them; `project` then takes them to D, after dropout
    (ALBERT, 1909.11942, section 3.1).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.embedding_width
        self.position_offset = config.position_offset
        self.scale = config.embedding_scale
        self.is_sinusoidal = config.positions == "sinusoidal"
        self.token = nn.Embedding(config.vocab_size, width)
        has_positions = config.positions == "learned"
        num_positions = config.max_length + config.position_offset
        self.position = nn.Embedding(num_positions, width) if has_positions else None
        self.token_type = nn.Embedding(config.token_type_rows, width) if config.token_type_rows else None
        self.norm = make_norm(config, width) if config.has_embedding_norm else None
        self.query = nn.Parameter(torch.zeros(width)) if config.query_stream else None
        self.projection = nn.Linear(width, config.hidden_size) if config.embedding_size else None

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor | None,
        delta: Tensor | None = None,
    ) -> Tensor:
        """Embed ids (B, T); `delta` (B, T, E) is added to the token embeddings, before their scale.

        Returns (B, T, E), to be projected.
        """
        x = self.token(input_ids)
        if delta is not None:
            x = x + delta
        if self.scale != 1.0:
            x = x * self.scale
        if self.token_type is not None:
            # BERT adds the type-0 vector where no types are given.
            x = x + (self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids))
        return self._finish(x, position_ids)

    def embed_query(self, position_ids: Tensor) -> Tensor:
        """Return the start of the query stream at positions (B, Q): a learned vector and the place, no content."""
        assert self.query is not None
        return self._finish(self.query.expand(*position_ids.shape, -1), position_ids)

    def project(self, x: Tensor) -> Tensor:
        """Return embeddings (B, T, E) as wide as the residual stream (B, T, D)."""
        return x if self.projection is None else self.projection(x)

    def _finish(self, x: Tensor, position_ids: Tensor) -> Tensor:
        if self.position is not None:
            x = x + self.position(
                position_ids + self.position_offset if self.position_offset else position_ids
            )
        if self.is_sinusoidal:
            x = x + sinusoidal_table(position_ids, x.shape[-1], x.dtype)
        return self.norm(x) if self.norm is not None else x


def share_tables(embedding: Embedding, base: Embedding) -> None:
    """Make an embedding read another's tables and norm: one set of weights, trained by both (ELECTRA, 2003.10555).

    The projection to its own width stays its own.
    """
    embedding.token, embedding.position, embedding.token_type = base.token, base.position, base.token_type
    embedding.norm = base.norm


def detach_tables(embedding: Embedding, base: Embedding) -> None:
    """Make an embedding's tables another's, kept from its gradient, plus a difference of its own that starts at 0.

    The base takes the present values; the difference is what remains trainable here. Reading `weight` gives the sum.
    Norms stay apart.
    Source: gradient-disentangled embedding sharing, DeBERTaV3, 2111.09543, section 3.2.
    """
    for own, other in (
        (embedding.token, base.token),
        (embedding.position, base.position),
        (embedding.token_type, base.token_type),
    ):
        if own is not None and other is not None:
            with torch.no_grad():
                other.weight.copy_(own.weight)
            parametrize.register_parametrization(own, "weight", _Difference(other))


class _Difference(nn.Module):
    """Add a difference to a table owned elsewhere, without a gradient for that."""

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self._base = (
            base,
        )  # in a tuple, so that it is not registered: the other embedding trains and saves it

    def forward(self, difference: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        return self._base[0].weight.detach() + difference

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the difference that gives `weight`."""
        return weight - self._base[0].weight.detach()
