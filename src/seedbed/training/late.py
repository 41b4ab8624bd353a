"""Read a step's numbers one step late, without waiting for the step that runs meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seedbed.training.step import StepResult

__all__ = ["LateNumbers", "StepNumbers"]


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """What a step did, as plain numbers.

    Attributes:
        is_applied: its gradient was; otherwise nothing was changed.
        gradient_norm: before clipping.
        losses: of each (entry, term), this worker's share.
        loss_scale: that the step ran with; None: none.
    """

    is_applied: bool
    gradient_norm: float
    losses: dict[tuple[int, str], float]
    loss_scale: float | None


class LateNumbers:
    """Send a step's numbers to the host as soon as it is queued; `read` waits for that copy alone.

    Reading a CUDA tensor directly waits for everything queued before the reading, so for the next step too, once that is
    queued: the device would run dry while the host prepares another. Hence one small copy a step, into pinned memory, with an
    event behind it. On other devices the tensors are kept, and read when they are asked for.
    """

    def __init__(self, result: StepResult) -> None:
        self._keys = list(result.losses)
        self._has_scale = result.loss_scale is not None
        numbers: list[Any] = [result.is_applied, result.gradient_norm]
        numbers += [] if result.loss_scale is None else [result.loss_scale]
        self._numbers = [*numbers, *result.losses.values()]
        self._event: torch.cuda.Event | None = None
        if _is_elsewhere(result.is_applied):
            packed = torch.stack([number.detach().float() for number in self._numbers])
            host, self._event = _on_the_way(packed)
            self._numbers = [host]

    def read(self) -> StepNumbers:
        """Return the numbers."""
        if self._event is not None:
            self._event.synchronize()
            self._numbers, self._event = self._numbers[0].tolist(), None
        is_applied, norm, *rest = self._numbers
        scale = float(rest.pop(0)) if self._has_scale else None
        losses = {key: float(loss) for key, loss in zip(self._keys, rest, strict=True)}
        return StepNumbers(bool(is_applied), float(norm), losses, scale)


def _is_elsewhere(tensor: Tensor) -> bool:
    """Say whether reading a tensor waits for work that was queued after it."""
    return tensor.device.type == "cuda"


def _on_the_way(packed: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """Start the copy of a CUDA tensor to the host; return where it arrives, and the event that says it has."""
    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    host.copy_(packed, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event
