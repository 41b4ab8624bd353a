"""Tell a gradient that is far out of line with those before it, so that its step can be passed over (`training.spike_guard`).

A finite gradient a hundred times too large is clipped to the usual length, but points where one bad batch wants. OLMo-core leaves
out steps beyond 6 standard deviations of the last 128 losses and norms. The same idea here, with another statistic: the distance
of the norm's logarithm from the median, in robust standard deviations (1.4826 times the median absolute deviation). It differs in
what was read in OLMo-core's code:

- it guards from the second step on, not from the 65th: a median needs no minimum of values, and `FLOOR` stands in for a spread
  that few values cannot show. The first step has nothing before it; its rate is the lowest of the warm-up.
- the window is part of the checkpoint, so that a resumed run decides as one that was never stopped.
- a rollback keeps it: going back to a window of then would leave the steps after it unguarded.
- what was left out, and what is not finite, never enters the window. One bad value that did (in the first step) moves no median.

It looks at the norm of the summed gradient alone, which all workers have in common to the bit, so that they decide alike without
asking each other, and it stays on the device: nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SpikeGuard"]

WINDOW = 128
DEVIATIONS = 6.0
FLOOR = 0.35
"""Smallest spread, in units of the logarithm: nothing below exp(6 * 0.35) = 8.2 times the median is a spike."""


class SpikeGuard:
    """Remember the norms of the last gradients that were applied, and judge new ones.

    Args:
        device: where norms are.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._logs = torch.full((WINDOW,), float("nan"), device=device)
        self._places = torch.arange(WINDOW, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    def take(self, norm: Tensor, is_finite: Tensor) -> Tensor:
        """Judge a norm (0-d float32) and remember it unless it is a spike; return (0-d bool) whether it is one.

        One that is not finite is no spike, and is not remembered either.
        """
        level = norm.detach().float().clamp(min=1e-30).log()
        middle = self._logs.nanmedian()  # nan at first: nothing is larger than that
        spread = (1.4826 * (self._logs - middle).abs().nanmedian()).clamp(min=FLOOR)
        is_spike = is_finite & (level > middle + DEVIATIONS * spread)
        is_taken = is_finite & ~is_spike
        self._logs = torch.where(is_taken & (self._places == self._count % WINDOW), level, self._logs)
        self._count = self._count + is_taken
        return is_spike

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """What is remembered, as it is now; later steps do not change it."""
        return self._logs, self._count

    @memory.setter
    def memory(self, memory: tuple[Tensor, Tensor]) -> None:
        self._logs, self._count = memory

    def values(self) -> list[float]:
        """Return what is remembered, oldest first, for a checkpoint; float32 values, which JSON keeps to the bit."""
        logs, count = self._logs.tolist(), int(self._count)
        return logs[:count] if count <= WINDOW else logs[count % WINDOW :] + logs[: count % WINDOW]

    def restore(self, values: Sequence[float]) -> None:
        """Remember what a checkpoint held, and nothing else."""
        device = self._logs.device
        self._logs = torch.full((WINDOW,), float("nan"), device=device)
        self._logs[: len(values)] = torch.tensor(list(values), device=device)
        self._count = torch.tensor(len(values), dtype=torch.int64, device=device)
