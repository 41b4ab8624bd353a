"""Adafactor: Adam's scaling with the second moment of a matrix kept as a row and a column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.guard import GuardedOptimizer
from seedbed.optim.shards import Shard, shards_of, sum_over_shards

__all__ = ["Adafactor", "AdafactorConfig"]


class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer and Stern, arXiv 1804.04235), as T5 was trained.

    torch.optim.Adafactor refuses the flag of a non-finite gradient and makes the host wait twice a matrix, hence ours; its
    update is the same, but for eps1, which bounds each factor of the estimate and not their product: that is never written
    out. Differs from the paper as torch's does: eps1 is a bound instead of being added to the squared gradient, and the
    rate is the schedule's. For the paper's relative step choose `inverse_square_root` with
    `timescale_steps: 10000` and a rate of 0.01.
    """

    name: Literal["adafactor"] = Field(
        "adafactor", description="Adam's scaling in a row and a column a matrix."
    )
    learning_rate: float = Field(
        1e-2, gt=0.0, description="Peak rate; with is_relative a share of each matrix's root mean square."
    )
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled decay of matrices; T5 had none.")
    is_relative: bool = Field(True, description="Multiply the rate by each matrix's root mean square.")
    min_scale: float = Field(1e-3, gt=0.0, description="Least root mean square taken for a matrix (eps2).")
    decay_exponent: float = Field(
        0.8, gt=0.0, le=1.0, description="c in 1 - step ** -c, the decay of the second moment."
    )
    max_update_rms: float = Field(
        1.0, gt=0.0, description="Updates are scaled down to this root mean square."
    )
    eps: float = Field(
        1.1920929e-07, gt=0.0, description="Least root of each factor of the second moment (eps1)."
    )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        return Adafactor(
            self.groups(named_parameters),
            is_relative=self.is_relative,
            min_scale=self.min_scale,
            decay_exponent=self.decay_exponent,
            max_update_rms=self.max_update_rms,
            eps=self.eps,
        )


class Adafactor(GuardedOptimizer):
    """Keep (rows, 1) and (1, columns) of a matrix's second moment, the whole of a vector's."""

    def keeps_whole(self, key: str, shape: tuple[int, ...]) -> bool:
        """Say that a matrix's column moments are of all its rows."""
        return key == "column" and len(shape) == 2

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return zero moments and no steps."""
        step = torch.zeros((), device=parameter.device)
        if parameter.ndim < 2:
            return {"step": step, "variance": torch.zeros_like(parameter)}
        row, column = parameter.shape[:-1], parameter.shape[:-2]  # of no rows too, where workers share few
        return {
            "step": step,
            "row": parameter.new_zeros(*row, 1),
            "column": parameter.new_zeros(*column, 1, parameter.shape[-1]),
        }

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Do the update, a matrix at a time: what is saved is the room for more than one."""
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            state["step"] += 1.0
            weight = state["step"] ** -group["decay_exponent"]
            shard = shards_of(group).get(parameter)
            scale = group["lr"] * (
                _rms(parameter, shard).clamp(min=group["min_scale"]) if group["is_relative"] else 1.0
            )
            if parameter.ndim < 2:
                variance = state["variance"].lerp_(gradient.square(), weight)
                gradient.mul_(variance.clamp(min=group["eps"] ** 2).rsqrt_())
            else:
                # The inverse roots of the two factors one after the other: their product is never written out.
                square = gradient.square()
                row = state["row"].lerp_(square.mean(-1, keepdim=True), weight)
                column = state["column"].lerp_(_mean_of_rows(square, shard), weight)
                share = row / _mean_of_rows(row, shard).clamp_(min=group["eps"] ** 2)
                gradient.mul_(share.clamp_(min=group["eps"] ** 2).rsqrt_())
                gradient.mul_(column.clamp(min=group["eps"] ** 2).rsqrt_())
            if decay := group["lr"] * group["weight_decay"]:
                parameter.mul_(1.0 - decay)
            scale = scale / (_rms(gradient, shard) / group["max_update_rms"]).clamp(min=1.0)
            parameter.addcmul_(gradient, scale, value=-1.0)


def _rms(tensor: Tensor, shard: Shard | None) -> Tensor:
    """Return the root mean square of a tensor, or of the whole of which these are some rows."""
    norm: Tensor = torch.linalg.vector_norm(tensor)
    if shard is None:
        return norm / math.sqrt(max(1, tensor.numel()))
    return sum_over_shards(norm.square()).sqrt() / math.sqrt(max(1, shard.numel))


def _mean_of_rows(tensor: Tensor, shard: Shard | None) -> Tensor:
    """Return the mean over rows (..., 1, C) of (..., R, C), or of the whole (R, C) of which these are some rows."""
    if shard is None or tensor.ndim > 2:
        return tensor.mean(-2, keepdim=True)
    return sum_over_shards(tensor.sum(-2, keepdim=True)) / shard.shape[0]
