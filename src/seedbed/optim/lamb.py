"""LAMB: Adam's direction, scaled to each matrix's own size, for large batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.guard import GuardedOptimizer, adam_directions, adam_state
from seedbed.optim.shards import shards_of, sum_over_shards

__all__ = ["LAMB", "LAMBConfig"]


class LAMBConfig(OptimizerConfig):
    """LAMB (You and others, arXiv 1904.00962). torch has none.

    Follows algorithm 2 with the identity as its phi. As in the authors' BERT, vectors (norms, biases) are moved by Adam's
    direction alone. The three projections of attention are one matrix here and have one ratio.
    """

    name: Literal["lamb"] = Field("lamb", description="Adam's direction, scaled to each matrix's norm.")
    learning_rate: float = Field(
        7e-3,
        gt=0.0,
        description="Peak rate, a share of each matrix's norm. 7e-3: GPT-BERT at 16k to 131k tokens.",
    )
    weight_decay: float = Field(
        0.1, ge=0.0, description="Decay of matrices, part of the direction before it is scaled."
    )
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the gradient's running mean.")
    beta2: float = Field(0.98, ge=0.0, lt=1.0, description="Decay of the squared gradient's running mean.")
    eps: float = Field(1e-6, gt=0.0, description="Added to the root of the second moment.")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        return LAMB(self.groups(named_parameters), beta1=self.beta1, beta2=self.beta2, eps=self.eps)


class LAMB(GuardedOptimizer):
    """Move each matrix by `lr * norm(weights) / norm(direction)` times its direction."""

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
        """Do the update."""
        directions = adam_directions(
            gradients, states, beta1=group["beta1"], beta2=group["beta2"], eps=group["eps"]
        )
        if group["weight_decay"]:
            torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
        matrices = [pair for pair in zip(parameters, directions, strict=True) if pair[0].ndim >= 2]
        lengths = [(parameter.norm(), direction.norm()) for parameter, direction in matrices]
        if shards_of(group) and matrices:
            squares = torch.stack([torch.stack(pair) for pair in lengths]).square()
            lengths = [(size, length) for size, length in sum_over_shards(squares).sqrt()]
        for (_, direction), (size, length) in zip(matrices, lengths, strict=True):
            # Matrices that begin at zero, and directions that are zero, have a ratio of 1.
            direction.mul_(torch.where((size > 0) & (length > 0), size / length, 1.0))
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])
