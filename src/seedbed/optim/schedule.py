"""Learning-rate schedules: plain functions of (step, number of steps, validation history), with values in [0, 1].

A budget in minutes or tokens has become a number of steps before the first one, so every schedule ends where the budget
does. All warm up linearly from 1 / warm-up to 1. One of them reads the validation losses recorded so far: these are saved
with a run, so its rate, too, is the same after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from seedbed.config import Config

__all__ = [
    "SCHEDULES",
    "ConstantConfig",
    "CosineConfig",
    "History",
    "InverseSquareRootConfig",
    "LinearConfig",
    "PolynomialConfig",
    "ReduceOnPlateauConfig",
    "ScheduleConfig",
    "WarmupStableDecayConfig",
]

History = Sequence[tuple[int, float]]
"""Validations in order: (steps done, loss), or whatever else is better when lower."""


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

    def factor(self, step: int, num_steps: int, history: History = ()) -> float:
        """Return the share of the peak rate at step `step` (from 0) of `num_steps`.

        Args:
            step: whose update it is.
            num_steps: of the whole run.
            history: validations so far; those after `step` are not looked at.
        """
        warmup = self.warmup_steps(num_steps)
        if step < warmup:
            return (step + 1) / warmup
        height = self.height(step, num_steps, history)
        return self.final_fraction + (1.0 - self.final_fraction) * height

    def height(self, step: int, num_steps: int, history: History) -> float:
        """Return the height, from 1 to 0, at a step after the warm-up."""
        warmup = self.warmup_steps(num_steps)
        return self.shape(min(1.0, (step - warmup) / max(1, num_steps - warmup)))

    def shape(self, progress: float) -> float:
        """Return the height at `progress` in [0, 1] after the warm-up: 1, where a schedule does not say otherwise."""
        return 1.0


class ConstantConfig(ScheduleConfig):
    """Stay at the peak after the warm-up; what schedule-free optimizers are run with."""

    name: Literal["constant"] = Field("constant", description="Warm-up, then the peak rate throughout.")


class LinearConfig(ScheduleConfig):
    """Fall linearly from the peak to the floor (BERT, RoBERTa)."""

    name: Literal["linear"] = Field("linear", description="Linear decay.")

    def shape(self, progress: float) -> float:
        """Return the height at `progress`."""
        return 1.0 - progress


class PolynomialConfig(ScheduleConfig):
    """Fall as a power of what is left of the run: 1 is linear, 2 falls sooner (fairseq's `polynomial_decay`)."""

    name: Literal["polynomial"] = Field("polynomial", description="A power of what is left of the run.")
    power: float = Field(2.0, gt=0.0, description="The exponent.")

    def shape(self, progress: float) -> float:
        """Return the height at `progress`."""
        return float((1.0 - progress) ** self.power)


class CosineConfig(ScheduleConfig):
    """Fall along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, one cycle)."""

    name: Literal["cosine"] = Field("cosine", description="Half a cosine.")

    def shape(self, progress: float) -> float:
        """Return the height at `progress`."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class InverseSquareRootConfig(ScheduleConfig):
    """Fall as one over the root of the step, whatever the length of the run (arXiv 1706.03762; T5, arXiv 1910.10683).

    It never reaches the floor: the run may be extended at any time, and ends undecayed.
    """

    name: Literal["inverse_square_root"] = Field(
        "inverse_square_root", description="One over the root of the step."
    )
    timescale_steps: int = Field(
        0, ge=0, description="Steps before the fall begins (T5: 10,000). 0: the warm-up, as the Transformer."
    )

    def height(self, step: int, num_steps: int, history: History) -> float:
        """Return the height at a step after the warm-up."""
        scale = max(1, self.timescale_steps or self.warmup_steps(num_steps))
        return math.sqrt(scale / max(scale, step + 1))


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


class ReduceOnPlateauConfig(ScheduleConfig):
    """Cut the rate when the validation loss no longer falls; torch's `ReduceLROnPlateau` as a pure function.

    The whole history is replayed for every step, so there is no counter to save. Differs from torch's in that the
    improvement asked for is relative only.
    """

    name: Literal["reduce_on_plateau"] = Field(
        "reduce_on_plateau", description="Cut the rate when the validation loss no longer falls."
    )
    reduction: float = Field(0.5, gt=0.0, lt=1.0, description="What the rate is multiplied by at a cut.")
    patience: int = Field(2, ge=0, description="Validations without improvement that are let pass.")
    cooldown: int = Field(0, ge=0, description="Validations after a cut during which none is counted.")
    min_improvement: float = Field(
        1e-3,
        ge=0.0,
        lt=1.0,
        description="Share by which a loss must be lower than the best to count as better.",
    )

    def height(self, step: int, num_steps: int, history: History) -> float:
        """Return the height at a step after the warm-up."""
        height, best, num_bad, resting = 1.0, math.inf, 0, 0
        for window, loss in history:
            if window > step:
                break
            if best == math.inf or loss < best - self.min_improvement * abs(best):
                best, num_bad = loss, 0
            else:
                num_bad += 1
            if resting > 0:
                resting, num_bad = resting - 1, 0
            if num_bad > self.patience:
                height, resting, num_bad = height * self.reduction, self.cooldown, 0
        return height


SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "linear": LinearConfig,
    "cosine": CosineConfig,
    "warmup_stable_decay": WarmupStableDecayConfig,
    "constant": ConstantConfig,
    "polynomial": PolynomialConfig,
    "inverse_square_root": InverseSquareRootConfig,
    "reduce_on_plateau": ReduceOnPlateauConfig,
}
