"""Schedule-free AdamW and SGD: averaging instead of a schedule, so that a run may end anywhere.

Three sequences: z moves by the plain update, x is the weighted mean of all z, and gradients are taken at y between them.
While training the model holds y; what is evaluated and exported is x, which `evaluation_weights` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.guard import GuardedOptimizer, one_minus_power
from seedbed.optim.schedule import ConstantConfig

__all__ = ["ScheduleFree", "ScheduleFreeAdamWConfig", "ScheduleFreeSGDConfig"]


class _ScheduleFreeConfig(OptimizerConfig):
    """Hold what both forms share."""

    averages: ClassVar[bool] = True

    momentum: float = Field(
        0.9, gt=0.0, lt=1.0, description="Where gradients are taken: this share of x, the rest of z (beta1)."
    )
    weight_power: float = Field(
        2.0, ge=0.0, description="The mean weighs steps by the highest rate so far to this power."
    )
    step_power: float = Field(0.0, ge=0.0, description="And by the step's number to this one; 0: all alike.")
    schedule: ConstantConfig = Field(
        default_factory=ConstantConfig, description="Warm-up only: the average takes the place of a decay."
    )


class ScheduleFreeAdamWConfig(_ScheduleFreeConfig):
    """Schedule-free AdamW (Defazio and others, arXiv 2405.15682).

    The `schedulefree` package keeps its counters in Python, where a skipped step cannot take them back and a checkpoint
    of named tensors does not find them, hence ours; the update is the same (tests compare). Differs from it in that the
    warm-up is the schedule's.
    """

    name: Literal["schedule_free_adamw"] = Field(
        "schedule_free_adamw", description="AdamW with averaging instead of a schedule."
    )
    beta2: float = Field(0.98, ge=0.0, lt=1.0, description="Decay of the squared gradient's running mean.")
    eps: float = Field(1e-8, gt=0.0, description="Added to the root of the second moment.")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        return ScheduleFree(
            self.groups(named_parameters),
            momentum=self.momentum,
            weight_power=self.weight_power,
            step_power=self.step_power,
            beta2=self.beta2,
            eps=self.eps,
        )


class ScheduleFreeSGDConfig(_ScheduleFreeConfig):
    """Schedule-free SGD (Defazio and others, arXiv 2405.15682); decay is added to the gradient."""

    name: Literal["schedule_free_sgd"] = Field(
        "schedule_free_sgd", description="SGD with averaging instead of a schedule."
    )
    learning_rate: float = Field(
        1.0, gt=0.0, description="Peak learning rate; ten times that of SGD with momentum 0.9, or less."
    )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        return ScheduleFree(
            self.groups(named_parameters),
            momentum=self.momentum,
            weight_power=self.weight_power,
            step_power=self.step_power,
            beta2=None,
            eps=0.0,
        )


class ScheduleFree(GuardedOptimizer):
    """Do both forms: with a `beta2` gradients are divided by the root of their second moment, with None they are not."""

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return z at the weights, and the counters at zero."""
        counters = {
            key: torch.zeros((), device=parameter.device) for key in ("step", "weight_sum", "max_rate")
        }
        state = {**counters, "z": parameter.detach().clone()}
        if group["beta2"] is not None:
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Do the update; x is never made."""
        rate, momentum, beta2 = group["lr"], group["momentum"], group["beta2"]
        shares = [_advance(state, group) for state in states]
        directions = gradients
        if beta2 is not None:
            squares = [state["exp_avg_sq"] for state in states]
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - beta2)
            roots = torch._foreach_div(squares, [one_minus_power(beta2, s["step"]) for s in states])
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["eps"])
            directions = list(torch._foreach_div(gradients, roots))
        if group["weight_decay"]:
            directions = list(torch._foreach_add(directions, parameters, alpha=group["weight_decay"]))
        z = [state["z"] for state in states]
        for parameter, end, direction, share in zip(parameters, z, directions, shares, strict=True):
            # From y to the next y: toward the new mean by `share`, then by the part of the update y takes.
            parameter.lerp_(end, share)
            parameter.add_(direction * (rate * (momentum * (1.0 - share) - 1.0)))
        torch._foreach_sub_(z, directions, alpha=rate)

    def evaluation_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield x for every parameter that has moved."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    yield parameter, parameter.detach().lerp(state["z"], 1.0 - 1.0 / group["momentum"])


def _advance(state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Count a step and return its share in the mean, 0-d."""
    state["step"] += 1.0
    state["max_rate"].clamp_(min=group["lr"])
    weight = state["step"] ** group["step_power"] * state["max_rate"] ** group["weight_power"]
    state["weight_sum"] += weight
    return torch.where(state["weight_sum"] > 0, weight / state["weight_sum"], 0.0)
