"""Stochastic gradient descent with momentum, on torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from seedbed.optim.base import OptimizerConfig

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
        optimizer = torch.optim.SGD(
            self.groups(named_parameters),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.is_nesterov and self.momentum > 0,
            fused=True,
        )
        if self.momentum > 0:
            # torch makes the sums at the first step, from its gradient; when that is not finite, it leaves them
            # uninitialised and adds to them from then on. A sum of zero gives the same first step, bit for bit.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
