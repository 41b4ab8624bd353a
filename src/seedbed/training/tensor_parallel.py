"""Share each layer among a few workers, by heads and by units of the feed-forward block (torch's `parallelize_module`).

The first matrix of a block is cut by rows, the second by columns, so that a block needs one sum over the workers forward and one
backward (Megatron-LM, 1909.08053, section 3). Norms, embeddings and the head are whole on each. The workers of a group read the
same rows; several groups share the rows of a step as single workers do, and gradients are summed over them at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from seedbed.models.config import TransformerConfig
from seedbed.models.transformer import Layer, Transformer
from seedbed.optim.shards import Slices
from seedbed.training.parallel import num_workers
from seedbed.training.shards import Shards

if TYPE_CHECKING:
    from seedbed.training.state import TrainingState

__all__ = ["TensorParallelShards", "split"]

_PLAN: dict[str, type[ColwiseParallel] | type[RowwiseParallel]] = {
    "attention.qkv": ColwiseParallel,
    "attention.output": RowwiseParallel,
    "feed_forward.input": ColwiseParallel,
    "feed_forward.output": RowwiseParallel,
}


class TensorParallelShards(Shards):
    """Hold this worker's heads and units of every layer, and all that is in no layer."""

    mesh: DeviceMesh
    """(groups, workers of a group)."""

    def take_gradients(self) -> None:
        """Give gradients, summed over the groups, to the parameters the optimizer updates."""
        super().take_gradients()
        if self.num_data_workers > 1:
            group = self.mesh["data"].get_group()
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=group)

    def total_norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the L2 norm over the workers' parts, and of what is whole once, 0-d float32, the same bits on each."""
        cut: list[Tensor] = []
        whole: list[Tensor] = []
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                (cut if name in self.layout else whole).append(parameter.grad)
        # Squared in double precision: float32 would overflow at norms that are finite.
        total, rest = (torch.nn.utils.get_total_norm(part).double().square() for part in (cut, whole))
        total = total.to(gradients[0].device)
        dist.all_reduce(total, group=self.mesh["tensor"].get_group())
        return (total + rest).sqrt().float()

    def gather(self) -> None:
        """Hold all weights whole on every worker from now on: training is over, and the modules run on each alone."""
        self.is_gathered = True
        for name, parameter in self.parameters.items():
            if parameter is self._sharded[name]:
                continue  # whole as it is, and maybe tied
            path, _, leaf = name.rpartition(".")
            whole = parameter.detach()
            if name in self.layout:
                whole = self.layout[name].whole(whole)
            setattr(self.parts.get_submodule(path), leaf, nn.Parameter(whole))
        for layer in _layers(self.parts):
            for path in _PLAN:
                module = layer.get_submodule(path)
                module._forward_pre_hooks.clear()  # parallelize_module's, which has no way back
                module._forward_hooks.clear()
            size = self.mesh["tensor"].size()
            layer.attention.num_heads *= size
            layer.attention.num_kv_heads *= size
            layer.attention.first_head = 0
        self._tie()


def split(
    state: TrainingState, *, size: int, device: torch.device, model: nn.Module | None = None
) -> TensorParallelShards:
    """Share the layers of a state among groups of `size` workers, in place.

    Args:
        state: whole, and the same on all workers; of a family whose layers the plan fits.
        size: workers of a group, which divides heads, key-value heads and units.
        device: where it trains.
        model: may have modules beside the learner's that share weights with it.
    """
    whole = dict(state.learner.parts.named_parameters())
    shards = TensorParallelShards(state, whole, model, num_copies=size)
    shards.mesh = init_device_mesh(
        device.type, (num_workers() // size, size), mesh_dim_names=("data", "tensor")
    )
    mesh = shards.mesh["tensor"]
    rank = mesh.get_local_rank()
    names = {id(parameter): name for name, parameter in whole.items()}
    for stack in (module for module in state.learner.modules() if isinstance(module, Transformer)):
        for layer in stack.layers:
            assert isinstance(layer, Layer)
            for parameter, dim, stretches in _cuts(layer, stack.config):
                slices = Slices(tuple(parameter.shape), dim, stretches, rank, mesh)
                shards.layout[names[id(parameter)]] = slices
                # torch cuts into equal runs: what belongs to a worker must lie together, a part of each projection.
                with torch.no_grad():
                    parameter.copy_(torch.cat([slices.part(parameter, other) for other in range(size)], dim))
            parallelize_module(layer, mesh, {path: style() for path, style in _PLAN.items()})
            layer.attention.num_heads //= size
            layer.attention.num_kv_heads //= size
            layer.attention.first_head = rank * layer.attention.num_heads
    shards.adopt(state, whole)
    return shards


def _cuts(layer: Layer, config: TransformerConfig) -> Iterator[tuple[Tensor, int, tuple[int, ...]]]:
    """Yield what of a layer is cut: along which dimension, and the lengths of the stretches that are cut each."""
    heads, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    units = (config.ffn_size,) * (2 if config.is_gated else 1)
    for module, stretches in (
        (layer.attention.qkv, (heads, groups, groups)),
        (layer.feed_forward.input, units),
    ):
        yield from (
            (parameter, 0, stretches) for parameter in (module.weight, module.bias) if parameter is not None
        )
    yield layer.attention.output.weight, 1, (heads,)
    yield layer.feed_forward.output.weight, 1, (config.ffn_size,)


def _layers(parts: nn.Module) -> Iterator[Layer]:
    return (module for module in parts.modules() if isinstance(module, Layer))
