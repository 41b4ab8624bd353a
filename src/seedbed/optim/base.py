"""Say what every optimizer's config has: a peak rate, a schedule, decay, and `build`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import nn

from seedbed.config import Config, one_of
from seedbed.optim.schedule import SCHEDULES, CosineConfig, LinearConfig, WarmupStableDecayConfig

if TYPE_CHECKING:
    Schedule = LinearConfig | CosineConfig | WarmupStableDecayConfig
else:
    Schedule = one_of(SCHEDULES, default="warmup_stable_decay")

__all__ = ["OptimizerConfig"]


class OptimizerConfig(Config):
    """Base of the optimizer configs; a new optimizer is one file with a subclass and one line in `OPTIMIZERS`."""

    name: str = Field("", description="Which optimizer; see OPTIMIZERS.")
    learning_rate: float = Field(2e-3, gt=0.0, description="Peak learning rate.")
    weight_decay: float = Field(
        0.05, ge=0.0, description="Decoupled decay of matrices; norms and biases never decay."
    )
    max_grad_norm: float = Field(
        1.0, ge=0.0, description="Gradients are scaled down to this global L2 norm. 0: no clipping."
    )
    schedule: Schedule = Field(default_factory=WarmupStableDecayConfig, description="Rate over the run.")

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""

    def rate(self, step: int, num_steps: int) -> float:
        """Return the learning rate of step `step` (from 0) of `num_steps`: a pure function."""
        return self.learning_rate * self.schedule.factor(step, num_steps)
