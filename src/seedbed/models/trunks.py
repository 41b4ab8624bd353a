"""Decide which trunk a description means: the one place that does."""

from __future__ import annotations

from seedbed.models.config import AttentionKind, TransformerConfig
from seedbed.models.relative import XLNetTransformer
from seedbed.models.transformer import Transformer

__all__ = ["TRUNKS", "make_trunk"]

TRUNKS: dict[AttentionKind, type[Transformer]] = {
    "dot_product": Transformer,
    "xlnet": XLNetTransformer,
}


def make_trunk(config: TransformerConfig) -> Transformer:
    """Return the trunk a description means, not initialised."""
    return TRUNKS[config.attention_kind](config)
