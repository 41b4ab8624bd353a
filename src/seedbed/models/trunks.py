"""Decide which trunk a description means: the one place that does."""

from __future__ import annotations

import torch
from torch import nn

from seedbed.models.config import AttentionKind, TransformerConfig
from seedbed.models.encoder_decoder import EncoderDecoder
from seedbed.models.relative import DisentangledTransformer, XLNetTransformer
from seedbed.models.transformer import Transformer

__all__ = ["TRUNKS", "Trunk", "compile_stacks", "make_trunk", "set_recomputing", "use_flex"]

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


def compile_stacks(module: nn.Module, *, backend: str = "inductor", mode: str | None = None) -> None:
    """Let training steps of the stacks inside a module run compiled, whole; only rounding depends on it.

    Each combination of shapes and plain fields is compiled when it first comes; what changes from step to step (the dropout key,
    targets, ids) comes in tensors. A size that varies is compiled once more, for any value.

    Args:
        module: the learner.
        backend: of `torch.compile`.
        mode: of `torch.compile`; "reduce-overhead" records CUDA graphs.
    """
    for stack in module.modules():
        if isinstance(stack, Transformer):
            stack.compiled = torch.compile(type(stack).run, backend=backend, mode=mode)


def use_flex(module: nn.Module) -> None:
    """Let the stacks inside a module attend by blocks where documents or windows leave some empty (`layers/block_mask.py`)."""
    from torch.nn.attention.flex_attention import flex_attention

    for stack in module.modules():
        if isinstance(stack, Transformer):
            stack.flex = torch.compile(flex_attention)
