"""Share weights, gradients and optimizer among the workers: each holds some rows of every parameter (torch's FSDP2).

A layer's weights are gathered before it runs and freed after it; its gradients are summed over the workers, and each keeps those
of its rows. What is outside layers, and layers that run at several depths, are one group with the whole learner: tied, shared and
raw-read weights are whole while the learner runs. Nothing is cast here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from seedbed.models.transformer import Transformer
from seedbed.optim.shards import Shard, sum_over_shards
from seedbed.training.parallel import num_workers, worker
from seedbed.training.shards import Shards

if TYPE_CHECKING:
    from seedbed.training.state import TrainingState

__all__ = ["FullyShardedShards", "shard"]

Kind = Literal["full_shard", "shard_grad_op"]


class FullyShardedShards(Shards):
    """Hold this worker's rows of everything."""

    kind: Kind = "full_shard"

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which backward passes accumulate whole gradients locally, where there is room for them."""
        return self._accumulating() if self.kind == "shard_grad_op" else nullcontext()

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
    def _accumulating(self) -> Iterator[None]:
        assert isinstance(self.learner, FSDPModule)
        for is_last in (False, True):
            self.learner.set_requires_gradient_sync(is_last)
            self.learner.set_reshard_after_backward(is_last)
            if not is_last:
                yield


def shard(
    state: TrainingState, *, kind: Kind, device: torch.device, model: nn.Module | None = None
) -> FullyShardedShards:
    """Share the learner and the optimizer of a state among the workers, in place.

    Args:
        state: whole, and the same on all workers.
        kind: full_shard frees a layer's weights after it ran and gathers them again for its backward pass (ZeRO-3);
            shard_grad_op keeps them in between, and sums up gradients of micro-batches before they are shared (ZeRO-2).
        device: where it trains.
        model: may have modules beside the learner's that share weights with it.
    """
    learner = state.learner
    whole = dict(learner.parts.named_parameters())
    shards = FullyShardedShards(state, whole, model, num_copies=1)
    shards.kind = kind
    mesh = init_device_mesh(device.type, (num_workers(),))
    for layer in _layers(learner):
        fully_shard(layer, mesh=mesh, reshard_after_forward=kind == "full_shard")
    # The backward pass begins with what the root holds.
    fully_shard(learner, mesh=mesh, reshard_after_forward=False)
    for module in _fsdp_modules(learner):
        module.set_gradient_divide_factor(1.0)  # sums; the division by the global count is done in the loss
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums
    register_fsdp_forward_method(learner, "run")
    for name, parameter in whole.items():
        shards.layout[name] = Shard(tuple(parameter.shape), rank=worker(), num_shards=num_workers())
    shards.adopt(state, whole)
    return shards


def _layers(learner: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that are groups of their own: not those that run at several depths, nor those several stacks share."""
    stacks = [module for module in learner.modules() if isinstance(module, Transformer)]
    places = [id(layer) for stack in stacks for layer in stack.layers]
    for stack in stacks:
        if stack.config.num_stored_layers == stack.config.num_layers:
            yield from (layer for layer in stack.layers if places.count(id(layer)) == 1)


def _fsdp_modules(learner: nn.Module) -> list[FSDPModule]:
    return [module for module in learner.modules() if isinstance(module, FSDPModule)]
