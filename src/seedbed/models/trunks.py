"""Decide which trunk a description means: the one place that does."""

from __future__ import annotations

from torch import nn

from seedbed.models.config import AttentionKind, TransformerConfig
from seedbed.models.encoder_decoder import EncoderDecoder
from seedbed.models.relative import DisentangledTransformer, XLNetTransformer
from seedbed.models.transformer import Transformer

__all__ = ["TRUNKS", "Trunk", "make_trunk", "set_recomputing"]

Trunk = Transformer | EncoderDecoder
"""What a head sits on: one stack, or two."""

TRUNKS: dict[AttentionKind, type[Transformer]] = {
    "dot_product": Transformer,
    "xlnet": XLNetTransformer,
    "disentangled": DisentangledTransformer,
}


def make_trunk(config: TransformerConfig) -> Trunk:
    """Return the trunk a description means, not initialised."""
    if config.stack == "encoder_decoder":
        return EncoderDecoder(config)
    return TRUNKS[config.attention_kind](config)


def set_recomputing(module: nn.Module, recomputes: bool) -> None:
    """Say whether the stacks inside a module run their layers again in the backward pass; values and gradients are the same."""
    for stack in module.modules():
        if isinstance(stack, Transformer):
            stack.recomputes = recomputes
