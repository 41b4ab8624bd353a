"""Lion: the sign of a momentum, one state a weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.guard import GuardedOptimizer, decay_weights

__all__ = ["Lion", "LionConfig"]


class LionConfig(OptimizerConfig):
    """Lion (Chen and others, arXiv 2302.06675). torch has none.

    Every weight moves by exactly the rate, so the rate is three to ten times smaller than AdamW's and decay as much
    larger (section 5 there).
    """

    name: Literal["lion"] = Field("lion", description="The sign of a momentum.")
    learning_rate: float = Field(
        3e-4, gt=0.0, description="Peak learning rate; a third to a tenth of AdamW's."
    )
    weight_decay: float = Field(
        0.5, ge=0.0, description="Decoupled decay of matrices; three to ten times AdamW's."
    )
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Share of the momentum in the update's direction.")
    beta2: float = Field(0.99, ge=0.0, lt=1.0, description="Decay of the momentum.")
    is_cautious: bool = Field(
        False, description="Decay a weight only where its update shrinks it, too (arXiv 2510.12402)."
    )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        groups = self.groups(named_parameters)
        return Lion(groups, beta1=self.beta1, beta2=self.beta2, is_cautious=self.is_cautious)


class Lion(GuardedOptimizer):
    """Move by the sign of beta1 * momentum + (1 - beta1) * gradient, then update the momentum with beta2."""

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return a zero momentum."""
        return {"exp_avg": torch.zeros_like(parameter)}

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Do the update."""
        means = [state["exp_avg"] for state in states]
        directions = torch._foreach_lerp(means, gradients, 1.0 - group["beta1"])
        torch._foreach_sign_(directions)
        amount = group["lr"] * group["weight_decay"]
        decay_weights(parameters, directions, amount=amount, is_cautious=group["is_cautious"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])
        torch._foreach_lerp_(means, gradients, 1.0 - group["beta2"])
