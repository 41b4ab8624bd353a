"""What a worker holds where workers share weights: plain tensors of its own, and how they make up the whole.

Two kinds fill this in: `sharding.py` (rows of everything, FSDP2) and `tensor_parallel.py` (heads and units of each layer).
The optimizer, averages and checkpoints see the same things of both: this worker's parameters, which lie in the memory of the
module's own, and a layout that gathers and cuts.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from seedbed.optim.guard import holds_rows
from seedbed.optim.shards import Shard, Slices
from seedbed.training.parallel import num_workers, worker

if TYPE_CHECKING:
    from seedbed.training.state import TrainingState

__all__ = ["Shards"]


class Shards(ABC):
    """Hold this worker's part of everything that trains.

    Attributes:
        parameters: by name; those that are shared are leaves of their own, in the memory of the module's parameters.
        layout: which part of a shared parameter it is; the others are whole.
        buffers: names of what else is saved; whole on every worker.
        num_copies: workers that read the same rows.
        data_worker: which of the workers that read different rows this is.
    """

    def __init__(
        self,
        state: TrainingState,
        whole: Mapping[str, nn.Parameter],
        model: nn.Module | None,
        *,
        num_copies: int,
    ) -> None:
        """Take stock of a state, before anything is shared.

        Args:
            state: whole, and the same on all workers.
            whole: its parameters.
            model: may have modules beside the learner's that share weights with it.
            num_copies: workers that read the same rows.
        """
        self.learner = state.learner
        self.parts: nn.Module = state.learner.parts
        saved = self.parts.state_dict(keep_vars=True)
        self.buffers = [name for name, _ in self.parts.named_buffers() if name in saved]
        names, trained = {id(p): name for name, p in whole.items()}, set(state.learner.modules())
        self._readers = [
            (module, leaf, names[id(parameter)])
            for module in (model or nn.Module()).modules()
            for leaf, parameter in module.named_parameters(recurse=False)
            if module not in trained and id(parameter) in names
        ]
        self.is_gathered = False
        self.num_copies = num_copies
        self.data_worker, self.num_data_workers = worker() // num_copies, num_workers() // num_copies
        self.parameters: dict[str, nn.Parameter] = {}
        self.layout: dict[str, Shard | Slices] = {}
        self._sharded: dict[str, nn.Parameter] = {}

    def adopt(self, state: TrainingState, whole: Mapping[str, nn.Parameter]) -> None:
        """Let optimizer and average of a state go on with this worker's part, now that the modules hold no more."""
        for name, parameter in self.parts.named_parameters():
            self._sharded[name] = parameter
            self.parameters[name] = parameter
            if isinstance(parameter, DTensor):
                own = parameter.to_local().detach()
                self.parameters[name] = nn.Parameter(own, requires_grad=parameter.requires_grad)
        self._tie()
        _share_optimizer(state.optimizer, whole, self)
        if state.average is not None:
            state.average.tensors = {
                name: self.layout[name].own(tensor).clone() if name in self.layout else tensor
                for name, tensor in state.average.tensors.items()
            }
        state.shards = self

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is saved: this worker's part of parameters, and buffers."""
        yield from self.parameters.items()
        for name in self.buffers:
            yield name, self.parts.get_buffer(name)

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context for backward passes that are not the last of a step."""
        return nullcontext()

    def take_gradients(self) -> None:
        """Give the gradients of the module's parameters to those the optimizer updates."""
        for name, parameter in self._sharded.items():
            if isinstance(parameter, DTensor):
                gradient = parameter.grad
                assert gradient is None or isinstance(gradient, DTensor)
                self.parameters[name].grad = (
                    None
                    if gradient is None
                    else gradient.redistribute(placements=parameter.placements).to_local()
                )
                parameter.grad = None

    @abstractmethod
    def total_norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the L2 norm of all gradients, 0-d float32, the same bits on each worker; not finite where one value is not."""

    @abstractmethod
    def gather(self) -> None:
        """Hold all weights whole on every worker from now on: training is over, and the modules run on each alone."""

    def reshard(self) -> None:  # noqa: B027 - there may be nothing to free
        """Free what was gathered to evaluate; weights changed in place are then read anew."""

    def release(self) -> None:  # noqa: B027 - there may be nothing to let go of
        """Let go of the process group, whose threads must not outlive it: an error may hold the learner for longer."""

    @contextmanager
    def unchanged(self, state: TrainingState) -> Iterator[None]:
        """Put weights, optimizer and the rest of the sharded state back after the block, which may train."""
        weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        moments = [(p, copy.deepcopy(kept)) for p, kept in state.optimizer.state.items()]
        settings = [
            {k: v for k, v in group.items() if isinstance(v, float)} for group in state.optimizer.param_groups
        ]
        average = None if state.average is None else {n: t.clone() for n, t in state.average.tensors.items()}
        counters = state.window, state.num_skipped, state.skips_in_a_row
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(weights[name])
            state.optimizer.state.clear()
            state.optimizer.state.update(moments)
            for group, before in zip(state.optimizer.param_groups, settings, strict=True):
                group.update(before)
            if state.average is not None and average is not None:
                state.average.tensors = average
            state.window, state.num_skipped, state.skips_in_a_row = counters

    def _tie(self) -> None:
        """Give modules beside the learner, such as a head that nothing trains, the present form of weights they share with it."""
        for module, leaf, name in self._readers:
            path, _, own = name.rpartition(".")
            setattr(module, leaf, getattr(self.parts.get_submodule(path), own))


def _share_optimizer(
    optimizer: torch.optim.Optimizer, whole: Mapping[str, nn.Parameter], shards: Shards
) -> None:
    """Let the optimizer update this worker's rows, with its rows of what it remembers."""
    names = {id(parameter): name for name, parameter in whole.items()}
    own: dict[Any, nn.Parameter] = {p: shards.parameters[names[id(p)]] for p in whole.values()}
    for group in optimizer.param_groups:
        group["shards"] = {
            own[p]: shards.layout[names[id(p)]] for p in group["params"] if names[id(p)] in shards.layout
        }
        if "rows" in group:
            group["rows"] = {own[p]: sizes for p, sizes in group["rows"].items()}
        group["params"] = [own[p] for p in group["params"]]
    kept: dict[Tensor, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        layout = shards.layout.get(names[id(parameter)])
        kept[own[parameter]] = {
            key: layout.own(value).clone()
            if layout is not None and holds_rows(optimizer, key, value, layout.shape)
            else value
            for key, value in values.items()
        }
    optimizer.state.clear()
    optimizer.state.update(kept)
