"""Learning-rate schedules: plain functions of (step, number of steps), with values in [0, 1].

A budget in minutes or tokens has become a number of steps before the first one, so every schedule ends where the budget
does. All warm up linearly from 1 / warm-up to 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

from pydantic import Field

from seedbed.config import Config

__all__ = ["SCHEDULES", "CosineConfig", "LinearConfig", "ScheduleConfig", "WarmupStableDecayConfig"]


class ScheduleConfig(Config):
    """Base of the schedules: a warm-up, a shape, a floor."""

    name: str = Field("", description="Which schedule; see SCHEDULES.")
    warmup_fraction: float = Field(0.02, ge=0.0, le=1.0, description="Share of the run spent warming up.")
    min_warmup_steps: int = Field(
        40, ge=0, description="Steps of warm-up at least (at most a quarter of the run)."
    )
    final_fraction: float = Field(0.0, ge=0.0, le=1.0, description="Rate at the end, as a share of the peak.")

    def warmup_steps(self, num_steps: int) -> int:
        """Return the number of warm-up steps."""
        wanted = max(round(self.warmup_fraction * num_steps), self.min_warmup_steps)
        return min(wanted, max(num_steps // 4, round(self.warmup_fraction * num_steps)))

    def factor(self, step: int, num_steps: int) -> float:
        """Return the share of the peak rate at step `step` (from 0) of `num_steps`."""
        warmup = self.warmup_steps(num_steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return self.final_fraction + (1.0 - self.final_fraction) * self.shape(progress)

    @abstractmethod
    def shape(self, progress: float) -> float:
        """Return the height, from 1 to 0, at `progress` in [0, 1] after the warm-up."""


class LinearConfig(ScheduleConfig):
    """Fall linearly from the peak to the floor (BERT, RoBERTa)."""

    name: Literal["linear"] = Field("linear", description="Linear decay.")

    def shape(self, progress: float) -> float:
        """Return the height at `progress`."""
        return 1.0 - progress


class CosineConfig(ScheduleConfig):
    """Fall along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, one cycle)."""

    name: Literal["cosine"] = Field("cosine", description="Half a cosine.")

    def shape(self, progress: float) -> float:
        """Return the height at `progress`."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupStableDecayConfig(ScheduleConfig):
    """Stay at the peak, then fall linearly (WSD; arXiv 2404.06395 with the linear tail of arXiv 2405.18392)."""

    name: Literal["warmup_stable_decay"] = Field(
        "warmup_stable_decay", description="Warm-up, plateau, linear decay."
    )
    decay_fraction: float = Field(
        0.65,
        gt=0.0,
        le=1.0,
        description="Share of the steps after the warm-up spent decaying, at the end of the run.",
    )

    def shape(self, progress: float) -> float:
        """Return the height at `progress`."""
        return min(1.0, (1.0 - progress) / self.decay_fraction)


SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "linear": LinearConfig,
    "cosine": CosineConfig,
    "warmup_stable_decay": WarmupStableDecayConfig,
}
