"""Norms over the last dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.config import TransformerConfig

__all__ = ["Norm", "make_norm"]


class Norm(nn.Module):
    """LayerNorm or RMSNorm with a scale, and an offset where the config has one."""

    def __init__(self, size: int, *, kind: str, eps: float, has_bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D); statistics are float32 whatever the input."""
        if self.kind == "layer":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def make_norm(config: TransformerConfig, size: int | None = None) -> Norm:
    """Return a norm of the config's kind over the hidden size, or another."""
    return Norm(size or config.hidden_size, kind=config.norm, eps=config.norm_eps, has_bias=config.norm_bias)
