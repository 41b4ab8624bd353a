"""Hold what a run is at one moment: weights, optimizer, and how many windows of rows it has consumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seedbed.errors import IncompatibleError
from seedbed.training.averaging import WeightAverage
from seedbed.training.spikes import SpikeGuard
from seedbed.training.step import Learner

__all__ = ["TrainingState", "named_tensors"]


@dataclass(slots=True)
class TrainingState:
    """Be all that a checkpoint saves.

    Attributes:
        learner: the modules that train.
        optimizer: its moments are saved by parameter name.
        window: windows of rows consumed; the whole state of the data side, and what schedules and dropout are keyed by.
        num_skipped: windows whose update was skipped for a gradient that was not finite, or a spike; the steps applied are
            `window - num_skipped`.
        skips_in_a_row: the last of them that followed each other.
        average: a moving average of the weights, or None; evaluated and exported in their place.
        spikes: what judges the size of gradients, or None.
        wrapped: the learner as steps call it, where several workers train (`parallel.wrap`); None: the learner itself.
        hooks: what hooks want back after a resume (best loss, patience), by hook name; JSON values.
    """

    learner: Learner
    optimizer: torch.optim.Optimizer
    window: int = 0
    num_skipped: int = 0
    skips_in_a_row: int = 0
    average: WeightAverage | None = None
    spikes: SpikeGuard | None = None
    wrapped: nn.Module | None = None
    hooks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Optimizer updates applied."""
        return self.window - self.num_skipped

    @property
    def bad_gradient(self) -> str:
        """Say what a gradient must have been to be skipped, for messages."""
        return "not finite" if self.spikes is None else "not finite or a spike"

    @property
    def history(self) -> list[tuple[int, float]]:
        """Validations so far, (window, loss) each: what a schedule may depend on besides the window."""
        return [(int(w), float(loss)) for w, loss in self.hooks.get("validation", {}).get("history", [])]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters by name, tied ones once."""
        return dict(self.learner.parts.named_parameters())

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state as `<parameter>/<field>` tensors."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters().items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                assert isinstance(value, Tensor), f"{key} would be lost: optimizers keep tensors only"
                tensors[f"{name}/{key}"] = value
        return tensors

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put saved optimizer state back.

        Raises:
            IncompatibleError: a tensor belongs to no parameter.
        """
        parameters = self.parameters()
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if name not in parameters:
                raise IncompatibleError(
                    f"the checkpoint's optimizer has state for {name!r}, which the model lacks."
                )
            device = parameters[name].device
            self.optimizer.state[parameters[name]][key] = tensor.to(device)


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what of a module is saved: parameters (tied ones once) and persistent buffers."""
    yield from module.named_parameters()
    saved = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer
