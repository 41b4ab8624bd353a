"""AdamW: Adam with decoupled weight decay, on torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.groups import decay_groups

__all__ = ["AdamWConfig"]


class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""

    name: Literal["adamw"] = Field("adamw", description="AdamW with decoupled weight decay.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the gradient's running mean.")
    beta2: float = Field(
        0.98,
        ge=0.0,
        lt=1.0,
        description="Decay of the squared gradient's running mean. 0.98 suits runs of a few hundred to a few thousand"
        " steps; BERT and GPT-2 at 100k steps and more use 0.999 and 0.95.",
    )
    eps: float = Field(1e-8, gt=0.0, description="Added to the root of the second moment.")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        groups = decay_groups(named_parameters, weight_decay=self.weight_decay)
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )
