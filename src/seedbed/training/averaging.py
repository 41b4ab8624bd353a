"""Average weights over a run: a running mean beside the trained ones, and the choice of what is evaluated.

Three things may differ from the weights that train: an exponential moving average (here), the sequence a schedule-free
optimizer evaluates (its own), and the mean of saved checkpoints (`checkpoint.py`, at the end). Validation, the best weights
and the export use the first two through `evaluation_weights`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from seedbed.training.state import TrainingState

__all__ = ["WeightAverage", "adopt_evaluation_weights", "evaluation_weights"]


class WeightAverage:
    """Keep an exponential moving average of the weights (Polyak and Juditsky 1992; with decay, as in arXiv 1706.03762).

    It begins as a copy of the weights after the step at `start`; after each later one that counts it moves by
    `1 - decay` of the way to them. A step that was skipped changes nothing.

    Args:
        decay: share kept at an update.
        start: window whose step is the first to count.
        every: windows from one update to the next.

    Attributes:
        tensors: the average by parameter name; empty before the start.
    """

    def __init__(self, decay: float, *, start: int = 0, every: int = 1) -> None:
        self.decay = decay
        self.start = start
        self.every = every
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], window: int, is_applied: Tensor) -> None:
        """Take in the weights after the step of a window.

        Args:
            parameters: of the model, by name.
            window: whose step was done.
            is_applied: 0-d bool on the weights' device; it is not read by the host.
        """
        if window < self.start or (window - self.start) % self.every:
            return
        if not self.tensors:
            self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            return
        for name, mean in self.tensors.items():
            moved = mean.lerp(parameters[name].detach(), 1.0 - self.decay)
            torch.where(is_applied, moved, mean, out=mean)


@contextmanager
def evaluation_weights(state: TrainingState) -> Iterator[None]:
    """Put the weights that are evaluated into the model while the block runs, then the trained ones back, bit for bit."""
    pairs = list(_replacements(state))
    trained = [parameter.detach().clone() for parameter, _ in pairs]
    _put(pairs)
    try:
        yield
    finally:
        _put(zip((parameter for parameter, _ in pairs), trained, strict=True))


def adopt_evaluation_weights(state: TrainingState) -> None:
    """Put the weights that are evaluated into the model for good: training is over."""
    _put(_replacements(state))


def _replacements(state: TrainingState) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the parameters that evaluation takes other values for."""
    if state.average is not None and state.average.tensors:
        parameters = state.parameters()
        for name, mean in state.average.tensors.items():
            yield parameters[name], mean
    elif (of_optimizer := getattr(state.optimizer, "evaluation_weights", None)) is not None:
        yield from of_optimizer()


@torch.no_grad()
def _put(pairs: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in pairs:
        parameter.copy_(value)
