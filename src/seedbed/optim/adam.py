"""Adam, on torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from seedbed.optim.base import OptimizerConfig

__all__ = ["AdamConfig"]


class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba, arXiv 1412.6980), for repeating work that used it; AdamW decays better.

    Decay is added to the gradient, as in torch and the paper's time, so it is divided by the second moment, too.
    """

    name: Literal["adam"] = Field("adam", description="Adam; any decay is added to the gradient.")
    weight_decay: float = Field(0.0, ge=0.0, description="L2 penalty on matrices, part of the gradient.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the gradient's running mean.")
    beta2: float = Field(0.98, ge=0.0, lt=1.0, description="Decay of the squared gradient's running mean.")
    eps: float = Field(1e-8, gt=0.0, description="Added to the root of the second moment.")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        return torch.optim.Adam(
            self.groups(named_parameters),
            lr=self.peak_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=True,
        )
