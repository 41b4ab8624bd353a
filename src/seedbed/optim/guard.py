"""Base of our own optimizers: an update written in place, skipped as a whole when a gradient was not finite.

torch's fused optimizers read a flag on the device and do nothing when it is set. Nothing else in torch does (Adafactor
refuses the flag, Muon overlooks it), and libraries keep counters in Python that move on. Here the flag works for any update:
where the host can read it for nothing (a CPU), the step returns; elsewhere the state before is kept and chosen again by the
flag, so that the host never waits. Everything an optimizer remembers is a tensor in its `state`, counters too: what
a checkpoint saves, and what a skipped step takes back.

Where workers share the weights, parameters are some rows of the whole, and a group holds `shards` (`shards.py`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from seedbed.optim.shards import shards_of

__all__ = ["GuardedOptimizer", "adam_directions", "adam_state", "decay_weights", "holds_rows"]

_CHUNK_ELEMENTS = 1 << 24
"""Weights updated at a time (64 MiB in float32): bounds what is kept of the state before."""


class GuardedOptimizer(torch.optim.Optimizer):
    """Update parameters in place, or leave weights and state bit-identical when `found_inf` is set.

    Attributes:
        found_inf: 0-d tensor on the weights' device, nonzero when a gradient of this step was not finite; None: never.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, **defaults})

    @abstractmethod
    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step."""

    @abstractmethod
    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Update weights and states in place; gradients may be overwritten. All are of one group."""

    def keeps_whole(self, key: str, shape: tuple[int, ...]) -> bool:
        """Say whether every worker holds the whole of this part of the state, where it holds some rows of the parameter only.

        Args:
            key: of the state.
            shape: of the whole parameter.
        """
        return False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step."""
        flag = self.found_inf
        if flag is not None and _is_at_hand(flag):
            if bool(flag):
                return
            flag = None
        for group in self.param_groups:
            for parameters in _chunks([p for p in group["params"] if p.grad is not None], shards_of(group)):
                states: list[dict[str, Tensor]] = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state.update(self.new_state(parameter, group))
                    states.append(state)
                changing = [*parameters, *(tensor for state in states for tensor in state.values())]
                before = [] if flag is None else [tensor.clone() for tensor in changing]
                self.update(parameters, [cast(Tensor, p.grad) for p in parameters], states, group)
                if flag is not None:
                    for tensor, old in zip(changing, before, strict=True):
                        torch.where(flag != 0, old, tensor, out=tensor)


def holds_rows(optimizer: torch.optim.Optimizer, key: str, tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Say whether a tensor of an optimizer's state has a row for each of its parameter's, so that workers share it alike."""
    keeps_whole = isinstance(optimizer, GuardedOptimizer) and optimizer.keeps_whole(key, shape)
    return tensor.ndim > 0 and not keeps_whole


def adam_state(parameter: Tensor) -> dict[str, Tensor]:
    """Return Adam's state before the first step: no moments, no steps."""
    return {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def adam_directions(
    gradients: list[Tensor], states: list[dict[str, Tensor]], *, beta1: float, beta2: float, eps: float
) -> list[Tensor]:
    """Advance Adam's moments and return its bias-corrected direction for each parameter (arXiv 1412.6980)."""
    means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
    steps = [s["step"] for s in states]
    torch._foreach_add_(steps, 1.0)
    torch._foreach_lerp_(means, gradients, 1.0 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - beta2)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [one_minus_power(beta2, step).sqrt_() for step in steps])
    torch._foreach_add_(roots, eps)
    directions = torch._foreach_div(means, roots)
    torch._foreach_div_(directions, [one_minus_power(beta1, step) for step in steps])
    return list(directions)


def one_minus_power(base: float, step: Tensor) -> Tensor:
    """Return 1 - base ** step, without the cancellation that costs float32 four digits at base 0.999."""
    return torch.ones_like(step) if base == 0.0 else -torch.expm1(step * math.log(base))


def decay_weights(
    parameters: list[Tensor], directions: Sequence[Tensor], *, amount: float, is_cautious: bool
) -> None:
    """Shrink weights by `amount`; cautiously only where the update shrinks them, too (arXiv 2510.12402).

    Args:
        parameters: the weights.
        directions: what a multiple of will be subtracted from them.
        amount: learning rate times weight decay.
        is_cautious: leave a weight alone whose update moves it away from zero.
    """
    if amount == 0.0:
        return
    if not is_cautious:
        torch._foreach_mul_(parameters, 1.0 - amount)
        return
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.sub_(parameter * (parameter * direction >= 0), alpha=amount)


def _is_at_hand(flag: Tensor) -> bool:
    """Say whether reading a tensor costs the host no wait."""
    return flag.device.type == "cpu"


def _chunks(parameters: Sequence[Tensor], shards: Mapping[Tensor, Any]) -> Iterator[list[Tensor]]:
    """Yield runs of parameters of about `_CHUNK_ELEMENTS` weights: of the whole ones, so that all workers cut alike."""
    chunk: list[Tensor] = []
    size = 0
    for parameter in parameters:
        own = shards[parameter].numel if parameter in shards else parameter.numel()
        if chunk and size + own > _CHUNK_ELEMENTS:
            yield chunk
            chunk, size = [], 0
        chunk.append(parameter)
        size += own
    if chunk:
        yield chunk
