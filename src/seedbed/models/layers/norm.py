"""Norms over the last dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.config import TransformerConfig

__all__ = ["Norm", "make_norm"]


class Norm(nn.Module):
    """LayerNorm or RMSNorm, with a scale and an offset where the config has them."""

    def __init__(self, size: int, *, kind: str, eps: float, has_bias: bool, has_scale: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps
        self.shape = (size,)
        self.weight = nn.Parameter(torch.ones(size)) if has_scale else None
        self.bias = nn.Parameter(torch.zeros(size)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D); statistics are float32 whatever the input."""
        if self.kind == "layer":
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        if self.weight is None:
            return F.rms_norm(x, self.shape, eps=self.eps)
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def make_norm(config: TransformerConfig, size: int | None = None) -> Norm:
    """Return a norm of the config's kind over the hidden size, or another."""
    return Norm(
        size or config.hidden_size,
        kind=config.norm,
        eps=config.norm_eps,
        has_bias=config.norm_bias,
        has_scale=config.norm_scale,
    )
