"""Update parameters of which each worker holds some rows only: say which, add up over the workers, gather a matrix.

Most updates look at one weight at a time, and need nothing from here. Those that look at a whole matrix (its norm, its rows and
columns, its singular vectors) ask for what they lack. Every worker must ask in the same order, which the order of the parameters
in their groups gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Shard", "Slices", "shards_of", "sum_over_shards"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Say which rows of a parameter this worker holds: those `torch.chunk` gives it, none where there are too few.

    Attributes:
        shape: of the whole parameter.
        rank: this worker.
        num_shards: workers that share the parameter.
    """

    shape: tuple[int, ...]
    rank: int
    num_shards: int

    @property
    def most_rows(self) -> int:
        """Rows of the first worker, which has most."""
        return -(-self.shape[0] // self.num_shards)

    @property
    def rows(self) -> slice:
        """The rows held here."""
        start = min(self.rank * self.most_rows, self.shape[0])
        return slice(start, min(start + self.most_rows, self.shape[0]))

    @property
    def numel(self) -> int:
        """Weights of the whole parameter."""
        return torch.Size(self.shape).numel()

    def own(self, whole: Tensor) -> Tensor:
        """Return this worker's rows of a whole tensor (R, ...); a view."""
        return whole[self.rows]

    def whole(self, rows: Tensor) -> Tensor:
        """Return the whole (R, ...) of which every worker gives its rows; all workers get it."""
        padded = rows.new_zeros(self.most_rows, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(self.num_shards)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[: self.shape[0]]

    def whole_shape(self, own: Tensor) -> tuple[int, ...]:
        """Return the shape of the whole of which a tensor is this worker's rows."""
        return (self.shape[0], *own.shape[1:])

    def read(self, read: Callable[[slice | None], Tensor]) -> Tensor:
        """Return this worker's rows of what `read` returns rows of, or the whole for None."""
        return read(self.rows)


@dataclass(frozen=True, slots=True)
class Slices:
    """Say which rows or columns of a parameter this worker holds: of each of several stretches, its part in order.

    Attributes:
        shape: of the whole parameter.
        dim: 0: rows; 1: columns.
        stretches: their lengths, each of which divides among the workers.
        rank: which part is this worker's.
        mesh: of the workers that share the parameter, one dimension.
    """

    shape: tuple[int, ...]
    dim: int
    stretches: tuple[int, ...]
    rank: int
    mesh: DeviceMesh = field(repr=False, compare=False)

    @property
    def numel(self) -> int:
        """Weights of the whole parameter."""
        return torch.Size(self.shape).numel()

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """Return a worker's slices of a whole tensor, one after the other."""
        stretches = torch.split(whole, list(self.stretches), self.dim)
        return torch.cat([each.chunk(self.mesh.size(), self.dim)[rank] for each in stretches], self.dim)

    def own(self, whole: Tensor) -> Tensor:
        """Return this worker's slices of a whole tensor."""
        return self.part(whole, self.rank)

    def whole(self, own: Tensor) -> Tensor:
        """Return the whole of which every worker gives its slices; all workers get it."""
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.mesh.size())]
        dist.all_gather(parts, own, group=self.mesh.get_group())
        sizes = [length // self.mesh.size() for length in self.stretches]
        pieces = [torch.split(part, sizes, self.dim) for part in parts]
        return torch.cat([piece[k] for k in range(len(sizes)) for piece in pieces], self.dim)

    def whole_shape(self, own: Tensor) -> tuple[int, ...]:
        """Return the shape of the whole of which a tensor is this worker's slices."""
        assert own.ndim == len(self.shape)
        return self.shape

    def read(self, read: Callable[[slice | None], Tensor]) -> Tensor:
        """Return this worker's slices of what `read` returns the whole of, for None."""
        return self.own(read(None))


def shards_of(group: Mapping[str, Any]) -> Mapping[Tensor, Any]:
    """Return the shards of an optimizer's group by parameter; empty where parameters are whole."""
    found: Mapping[Tensor, Any] = group.get("shards", {})
    return found


def sum_over_shards(values: Tensor) -> Tensor:
    """Return the sum over all workers, the same bits on each."""
    values = values.contiguous()
    dist.all_reduce(values)
    return values
