"""Hold what a run is at one moment: weights, optimizer, and how many windows of rows it has consumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from seedbed.errors import IncompatibleError
from seedbed.optim.guard import holds_rows
from seedbed.optim.shards import Shard, Slices
from seedbed.training.averaging import WeightAverage
from seedbed.training.compression import PowerSGDMemory
from seedbed.training.loss_scale import LossScale
from seedbed.training.parallel import num_workers, worker
from seedbed.training.spikes import SpikeGuard
from seedbed.training.step import Learner

if TYPE_CHECKING:
    from seedbed.training.shards import Shards

__all__ = ["TrainingState", "named_tensors"]

T = TypeVar("T")


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
        loss_scale: of float16, or None.
        average: a moving average of the weights, or None; evaluated and exported in their place.
        spikes: what judges the size of gradients, or None.
        wrapped: the learner as steps call it, where several workers train (`parallel.wrap`); None: the learner itself.
        shards: what this worker holds of the weights, where workers share them (`shards.py`).
        memory: what each worker remembers of gradients that were not sent whole (`compression.py`), or None.
        hooks: what hooks want back after a resume (best loss, patience), by hook name; JSON values.
    """

    learner: Learner
    optimizer: torch.optim.Optimizer
    window: int = 0
    num_skipped: int = 0
    skips_in_a_row: int = 0
    average: WeightAverage | None = None
    spikes: SpikeGuard | None = None
    loss_scale: LossScale | None = None
    wrapped: nn.Module | None = None
    shards: Shards | None = None
    memory: PowerSGDMemory | None = None
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
    def data_worker(self) -> int:
        """Which of the workers that read different rows this one is."""
        return worker() if self.shards is None else self.shards.data_worker

    @property
    def num_data_workers(self) -> int:
        """Workers that read different rows."""
        return num_workers() if self.shards is None else self.shards.num_data_workers

    @property
    def is_of_all_workers(self) -> bool:
        """Say whether each worker holds something no other has, so that all must take part in saving."""
        return self.shards is not None or self.memory is not None

    @property
    def history(self) -> list[tuple[int, float]]:
        """Validations so far, (window, loss) each: what a schedule may depend on besides the window."""
        return [(int(w), float(loss)) for w, loss in self.hooks.get("validation", {}).get("history", [])]

    def release(self) -> None:
        """Let go of the other workers: the state is not trained any more."""
        if self.shards is not None:
            self.shards.release()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters by name, tied ones once; where workers share them, this worker's rows."""
        return dict(self.learner.parts.named_parameters() if self.shards is None else self.shards.parameters)

    @property
    def num_parameters(self) -> int:
        """Weights that train, on all workers together."""
        layout = self.layout
        return sum(
            layout[n].numel if n in layout else parameter.numel()
            for n, parameter in self.parameters().items()
        )

    def model_tensors(self) -> dict[str, Tensor]:
        """Return what of the modules is saved, by name; of parameters that workers share, this worker's rows."""
        return dict(named_tensors(self.learner.parts) if self.shards is None else self.shards.named_tensors())

    @property
    def layout(self) -> Mapping[str, Shard | Slices]:
        """Which rows of parameters this worker holds; empty where it holds all."""
        return {} if self.shards is None else self.shards.layout

    def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call what runs the learner's modules to evaluate them; weights that workers share are gathered meanwhile.

        All workers must call it with the same arguments.
        """
        result: T = self.learner.run(function, *arguments, **options)
        if self.shards is not None:
            self.shards.reshard()
        return result

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state as `<parameter>/<field>` tensors."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters().items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                assert isinstance(value, Tensor), f"{key} would be lost: optimizers keep tensors only"
                tensors[f"{name}/{key}"] = value
        return tensors

    def optimizer_layout(self) -> dict[str, Shard | Slices]:
        """Return which of these tensors are some rows of a whole one, and which rows."""
        return {
            f"{name}/{key}": shard
            for name, shard in self.layout.items()
            for key, value in self.optimizer.state.get(self.parameters()[name], {}).items()
            if holds_rows(self.optimizer, key, value, shard.shape)
        }

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved optimizer state back: whole tensors, of which this worker takes what it holds.

        Raises:
            IncompatibleError: a tensor belongs to no parameter.
        """
        parameters, layout = self.parameters(), self.layout
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if name not in parameters:
                raise IncompatibleError(
                    f"the checkpoint's optimizer has state for {name!r}, which the model lacks."
                )
            if name in layout and holds_rows(self.optimizer, key, tensor, layout[name].shape):
                tensor = layout[name].own(tensor).clone()  # not a view, which would keep the whole
            self.optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what of a module is saved: parameters (tied ones once) and persistent buffers."""
    yield from module.named_parameters()
    saved = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer
