"""Stochastic gradient descent with momentum, on torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.groups import decay_groups

__all__ = ["SGDConfig"]


class SGDConfig(OptimizerConfig):
    """SGD with momentum.

    Differs from AdamW in its decay: torch's SGD adds decay to the gradient, so it passes through the momentum.
    """

    name: Literal["sgd"] = Field("sgd", description="SGD with momentum.")
    learning_rate: float = Field(0.1, gt=0.0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the running gradient sum.")
    is_nesterov: bool = Field(True, description="Look ahead by one momentum step.")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        groups = decay_groups(named_parameters, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            groups,
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.is_nesterov and self.momentum > 0,
            fused=True,
        )
