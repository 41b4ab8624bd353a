"""Scale a float16 loss so that small gradients stay numbers, and shrink the scale when large ones do not.

Float16 ends at 65,504 and loses what is smaller than 6e-8. The loss is multiplied before the backward pass, gradients are divided
after it, and a step whose gradients overflowed is skipped with half the scale from then on (Micikevicius et al., 1710.03740,
section 3.2). Such a step is the scale's way to find its place and no fault; see `loop.fit` for what counts as one.

Differs from `torch.amp.GradScaler`: the host never reads the flag or the scale in a step, there is one unscaling, in the factor
that clips, and the state is two numbers of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["LossScale"]

_INITIAL = 2.0**16
_LARGEST = 2.0**24
_STEPS_TO_GROWTH = 2000


class LossScale:
    """Hold the scale, on the device; powers of two only, so that scaling rounds nothing.

    Attributes:
        scale: 0-d float32.
        num_good: finite steps since it changed, 0-d int32.
    """

    SMALLEST = 1.0
    """Below it nothing is gained: gradients that overflow unscaled are a fault."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.scale = torch.full((), _INITIAL, dtype=torch.float32, device=device)
        self.num_good = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, is_finite: Tensor) -> None:
        """Halve the scale after a step that overflowed; double it after 2,000 in a row that did not.

        The tensors are replaced, not changed: what a step has been told stays true.
        """
        good = self.num_good + 1
        grows = good >= _STEPS_TO_GROWTH
        up = torch.where(grows, self.scale * 2, self.scale).clamp(max=_LARGEST)
        down = (self.scale / 2).clamp(min=self.SMALLEST)
        self.scale = torch.where(is_finite, up, down)
        self.num_good = torch.where(is_finite & ~grows, good, torch.zeros_like(good))

    def values(self) -> dict[str, float]:
        """Return what a checkpoint keeps; reads the device."""
        return {"scale": float(self.scale), "num_good": int(self.num_good)}

    def load(self, values: Mapping[str, float]) -> None:
        """Put back what a checkpoint kept."""
        self.scale = torch.full_like(self.scale, values["scale"])
        self.num_good = torch.full_like(self.num_good, int(values["num_good"]))
