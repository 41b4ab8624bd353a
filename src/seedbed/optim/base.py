"""Say what every optimizer's config has: a peak rate, a schedule, groups, decay, and `build`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from seedbed.config import Config, one_of
from seedbed.optim.groups import GroupRule, WidthScaling, parameter_groups
from seedbed.optim.schedule import (
    SCHEDULES,
    History,
    ScheduleConfig,
    WarmupStableDecayConfig,
)

if TYPE_CHECKING:
    Schedule = ScheduleConfig
else:
    Schedule = one_of(SCHEDULES, default="warmup_stable_decay")

__all__ = ["USUAL_DECAY", "OptimizerConfig", "Schedule", "usual_rate"]

USUAL_DECAY = 0.05
"""Of weights, for a text that is read a few times at most."""

_RATE, _RATE_BATCH, _RATE_WIDTH, _WIDTH_POWER = 2e-3, 8192, 256, 0.75
_NARROWEST = 128


def usual_rate(batch_tokens: float = _RATE_BATCH, width: int = _RATE_WIDTH) -> float:
    """Return the peak rate for steps of so many tokens and a model of this width.

    It grows with the square root of the tokens up to 8,192, and falls with the 0.75th power of the width: twice the rate was
    best at 128 (`experiments/rate_by_width.yaml`), 1.5e-3 at 384 and 1e-3 at 768 are usual. Nothing narrower was measured.
    """
    by_batch = min(1.0, batch_tokens / _RATE_BATCH) ** 0.5
    by_width = (_RATE_WIDTH / max(width, _NARROWEST)) ** _WIDTH_POWER
    return float(f"{_RATE * by_batch * by_width:.2g}")


class OptimizerConfig(Config):
    """Base of the optimizer configs; a new optimizer is one file with a subclass and one line in `OPTIMIZERS`."""

    averages: ClassVar[bool] = False
    """The optimizer averages weights itself: another average of them is refused."""

    name: str = Field("", description="Which optimizer; see OPTIMIZERS.")
    learning_rate: float | None = Field(
        None,
        gt=0.0,
        description="Peak learning rate. null: 2e-3 for steps of 8,192 tokens and more and a width of 256, for smaller steps less"
        " by the square root of their share, for wider models less by the 0.75th power.",
    )
    weight_decay: float | None = Field(
        None,
        ge=0.0,
        description="Decoupled decay of matrices; norms and biases never decay. null: 0.05, or 0.3 for a text that is read more"
        " than four times.",
    )
    decay_schedule: Literal["constant", "linear", "rate"] = Field(
        "constant",
        description="Weight decay over the run. constant: the shrinkage of a step is rate times decay, so it already falls"
        " with the rate; linear: decay itself falls linearly to 0; rate: decay follows the shape of the rate.",
    )
    max_grad_norm: float = Field(
        1.0, ge=0.0, description="Gradients are scaled down to this global L2 norm. 0: no clipping."
    )
    rules: tuple[GroupRule, ...] = Field(
        (), description="Rates and decays by parameter name; the first rule that matches a name counts."
    )
    layer_rate_decay: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Rate of a layer as a share of that of the layer above it. 1: the same; 0.65 to 0.9 when a trained model"
        " is trained further.",
    )
    width_scaling: WidthScaling = Field(
        "none",
        description="Rates by width, so that a rate found on a narrow model serves a wider one. inverse: hidden matrices times"
        " base_width / width (muP); inverse_sqrt: all matrices times its root (nanochat).",
    )
    base_width: int = Field(256, gt=0, description="Width at which the learning rate was found.")
    schedule: Schedule = Field(default_factory=WarmupStableDecayConfig, description="Rate over the run.")

    @property
    def peak_rate(self) -> float:
        """Return the learning rate; where the recipe leaves it open that of large steps."""
        return usual_rate() if self.learning_rate is None else self.learning_rate

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""

    def groups(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        kind: Callable[[str, nn.Parameter], str] = lambda name, parameter: "",
        kind_scales: Mapping[str, float] | None = None,
    ) -> list[dict[str, Any]]:
        """Sort the parameters into groups as this section says (`groups.parameter_groups`)."""
        return parameter_groups(
            named_parameters,
            weight_decay=USUAL_DECAY if self.weight_decay is None else self.weight_decay,
            rules=self.rules,
            layer_rate_decay=self.layer_rate_decay,
            width_scaling=self.width_scaling,
            base_width=self.base_width,
            kind=kind,
            kind_scales=kind_scales,
        )

    def rate(self, step: int, num_steps: int, history: History = ()) -> float:
        """Return the learning rate of step `step` (from 0) of `num_steps`: a pure function.

        `history` holds the validations so far, (steps done, loss) each.
        """
        return self.peak_rate * self.schedule.factor(step, num_steps, history)

    def settings(self, step: int, num_steps: int, history: History = ()) -> dict[str, float]:
        """Return what else is scheduled, for `groups.set_groups`: a pure function, too."""
        if self.decay_schedule == "linear":
            return {"decay_factor": max(0.0, 1.0 - step / max(1, num_steps))}
        if self.decay_schedule == "rate":
            return {"decay_factor": self.schedule.factor(step, num_steps, history)}
        return {}
