"""Share weights, gradients and optimizer among the workers: each holds some rows of every parameter (torch's FSDP2).

A layer's weights are gathered before it runs and freed after it; its gradients are summed over the workers, and each keeps those
of its rows. What is outside layers, and layers that run at several depths, are one group with the whole learner: tied, shared and
raw-read weights are whole while the learner runs. Nothing is cast here.

The optimizer, averages and checkpoints see plain tensors: this worker's rows, in the memory of the module's own parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from seedbed.models.transformer import Transformer
from seedbed.optim.guard import holds_rows
from seedbed.optim.shards import Shard, sum_over_shards
from seedbed.training.parallel import num_workers, worker

if TYPE_CHECKING:
    from seedbed.training.state import TrainingState

__all__ = ["Shards", "shard"]

Kind = Literal["full_shard", "shard_grad_op"]


class Shards:
    """Hold this worker's rows of everything that trains.

    Attributes:
        parameters: rows by parameter name; leaves of their own, in the memory of the module's parameters.
        layout: which rows.
        buffers: names of what else is saved; whole on every worker.
    """

    def __init__(
        self, learner: nn.Module, *, kind: Kind, buffers: list[str], readers: list[tuple[nn.Module, str, str]]
    ) -> None:
        self.learner = learner
        self.kind = kind
        self.buffers = buffers
        self.is_gathered = False
        self._readers = readers
        self._sharded: dict[str, nn.Parameter] = dict(_parts(learner).named_parameters())
        self.parameters: dict[str, nn.Parameter] = {}
        self.layout: dict[str, Shard] = {}
        for name, parameter in self._sharded.items():
            assert isinstance(parameter, DTensor)
            own = parameter.to_local().detach()
            self.parameters[name] = nn.Parameter(own, requires_grad=parameter.requires_grad)
            layout = Shard(tuple(parameter.shape), rank=worker(), num_shards=num_workers())
            assert own.shape[0] == layout.rows.stop - layout.rows.start
            self.layout[name] = layout
        self._tie()

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is saved: this worker's rows of parameters, and buffers."""
        yield from self.parameters.items()
        for name in self.buffers:
            yield name, _parts(self.learner).get_buffer(name)

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which backward passes accumulate whole gradients locally, where there is room for them."""
        return self._accumulating() if self.kind == "shard_grad_op" else nullcontext()

    def take_gradients(self) -> None:
        """Give the gradients of the module's parameters to the rows the optimizer updates."""
        for name, parameter in self._sharded.items():
            gradient = parameter.grad
            self.parameters[name].grad = gradient.to_local() if isinstance(gradient, DTensor) else None
            parameter.grad = None

    def total_norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the L2 norm over all workers' rows, 0-d float32, the same bits on each; not finite where one row is not."""
        own = torch.nn.utils.get_total_norm([g for g in gradients if g.numel()])
        # Squared in double precision: float32 would overflow at norms that are finite.
        return sum_over_shards(own.double().square().to(gradients[0].device)).sqrt().float()

    def reshard(self) -> None:
        """Free what was gathered to evaluate; weights changed in place are then read anew."""
        if not self.is_gathered:
            for module in _fsdp_modules(self.learner):
                module.reshard()

    def gather(self) -> None:
        """Hold all weights whole on every worker from now on: training is over, and the modules run on each alone."""
        self.is_gathered = True
        for module in _fsdp_modules(self.learner):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        self._tie()

    def release(self) -> None:
        """Let go of the process group, whose threads must not outlive it: an error may hold the learner for longer."""
        for module in _fsdp_modules(self.learner):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                for info in (group.mesh_info, group.post_forward_mesh_info):
                    if info is not None:
                        vars(info).pop("shard_process_group", None)

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
            setattr(module, leaf, getattr(_parts(self.learner).get_submodule(path), own))

    @contextmanager
    def _accumulating(self) -> Iterator[None]:
        assert isinstance(self.learner, FSDPModule)
        for is_last in (False, True):
            self.learner.set_requires_gradient_sync(is_last)
            self.learner.set_reshard_after_backward(is_last)
            if not is_last:
                yield


def shard(
    state: TrainingState, *, kind: Kind, device: torch.device, model: nn.Module | None = None
) -> Shards:
    """Share the learner and the optimizer of a state among the workers, in place.

    Args:
        state: whole, and the same on all workers.
        kind: full_shard frees a layer's weights after it ran and gathers them again for its backward pass (ZeRO-3);
            shard_grad_op keeps them in between, and sums up gradients of micro-batches before they are shared (ZeRO-2).
        device: where it trains.
        model: may have modules beside the learner's that share weights with it.
    """
    learner, optimizer = state.learner, state.optimizer
    whole = dict(learner.parts.named_parameters())
    saved = learner.parts.state_dict(keep_vars=True)
    buffers = [name for name, _ in learner.parts.named_buffers() if name in saved]
    del saved
    names, trained = {id(p): name for name, p in whole.items()}, set(learner.modules())
    readers = [
        (module, leaf, names[id(parameter)])
        for module in (model or nn.Module()).modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if module not in trained and id(parameter) in names
    ]
    mesh = init_device_mesh(device.type, (num_workers(),))
    for layer in _layers(learner):
        fully_shard(layer, mesh=mesh, reshard_after_forward=kind == "full_shard")
    # The backward pass begins with what the root holds.
    fully_shard(learner, mesh=mesh, reshard_after_forward=False)
    for module in _fsdp_modules(learner):
        module.set_gradient_divide_factor(1.0)  # sums; the division by the global count is done in the loss
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums
    register_fsdp_forward_method(learner, "run")
    shards = Shards(learner, kind=kind, buffers=buffers, readers=readers)
    _shard_optimizer(optimizer, whole, shards)
    if state.average is not None:
        state.average.tensors = {
            name: shards.layout[name].own(tensor).clone() for name, tensor in state.average.tensors.items()
        }
    state.shards = shards
    return shards


def _shard_optimizer(
    optimizer: torch.optim.Optimizer, whole: Mapping[str, nn.Parameter], shards: Shards
) -> None:
    """Let the optimizer update this worker's rows, with its rows of what it remembers."""
    names = {id(parameter): name for name, parameter in whole.items()}
    own: dict[Any, nn.Parameter] = {p: shards.parameters[names[id(p)]] for p in whole.values()}
    for group in optimizer.param_groups:
        group["shards"] = {own[p]: shards.layout[names[id(p)]] for p in group["params"]}
        if "rows" in group:
            group["rows"] = {own[p]: sizes for p, sizes in group["rows"].items()}
        group["params"] = [own[p] for p in group["params"]]
    kept: dict[Tensor, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        layout = shards.layout[names[id(parameter)]]
        kept[own[parameter]] = {
            key: layout.own(value).clone() if holds_rows(optimizer, key, value, layout.shape) else value
            for key, value in values.items()
        }
    optimizer.state.clear()
    optimizer.state.update(kept)


def _layers(learner: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that are groups of their own: not those that run at several depths, nor those several stacks share."""
    stacks = [module for module in learner.modules() if isinstance(module, Transformer)]
    places = [id(layer) for stack in stacks for layer in stack.layers]
    for stack in stacks:
        if stack.config.num_stored_layers == stack.config.num_layers:
            yield from (layer for layer in stack.layers if places.count(id(layer)) == 1)


def _fsdp_modules(learner: nn.Module) -> list[FSDPModule]:
    return [module for module in learner.modules() if isinstance(module, FSDPModule)]


def _parts(learner: nn.Module) -> nn.Module:
    parts = learner.parts
    assert isinstance(parts, nn.Module)
    return parts
