"""AdamW: Adam with decoupled weight decay, on torch's fused kernel (cautious decay: on ours)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.guard import GuardedOptimizer, adam_directions, adam_state, decay_weights

__all__ = ["AdamWConfig", "CautiousAdamW"]


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
    is_cautious: bool = Field(
        False, description="Decay a weight only where its update shrinks it, too (arXiv 2510.12402)."
    )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        groups = self.groups(named_parameters)
        if self.is_cautious:
            return CautiousAdamW(groups, beta1=self.beta1, beta2=self.beta2, eps=self.eps)
        return torch.optim.AdamW(
            groups, lr=self.peak_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )


class CautiousAdamW(GuardedOptimizer):
    """AdamW whose decay leaves alone what the update moves away from zero; torch has no such option."""

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return zero moments."""
        return adam_state(parameter)

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Do Adam's update after the decay."""
        directions = adam_directions(
            gradients, states, beta1=group["beta1"], beta2=group["beta2"], eps=group["eps"]
        )
        decay_weights(parameters, directions, amount=group["lr"] * group["weight_decay"], is_cautious=True)
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])
