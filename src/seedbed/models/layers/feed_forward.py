"""The position-wise block, plain or gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.config import Activation, TransformerConfig
from seedbed.models.layers.norm import make_norm

__all__ = ["FeedForward", "activate"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
}


def activate(x: Tensor, kind: Activation) -> Tensor:
    """Apply an activation by name."""
    return _ACTIVATIONS[kind](x)


class FeedForward(nn.Module):
    """Map (B, T, D) -> F -> D. Gated: one product makes both halves, the first is activated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.is_gated = config.is_gated
        width = config.ffn_size * (2 if config.is_gated else 1)
        self.input = nn.Linear(config.hidden_size, width, bias=config.ffn_bias)
        self.inner_norm = make_norm(config, config.ffn_size) if config.inner_norm else None
        self.output = nn.Linear(config.ffn_size, config.hidden_size, bias=config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, without the residual."""
        inner = self.input(x)
        if self.is_gated:
            first, second = inner.chunk(2, dim=-1)
            hidden = activate(first, self.activation) * second
        else:
            hidden = activate(inner, self.activation)
        if self.inner_norm is not None:
            hidden = self.inner_norm(hidden)
        out: Tensor = self.output(hidden)
        return out
