"""Update parameters of which each worker holds some rows only: say which, add up over the workers, gather a matrix.

Most updates look at one weight at a time, and need nothing from here. Those that look at a whole matrix (its norm, its rows and
columns, its singular vectors) ask for what they lack. Every worker must ask in the same order, which the order of the parameters
in their groups gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Shard", "shards_of", "sum_over_shards"]


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


def shards_of(group: Mapping[str, Any]) -> Mapping[Tensor, Shard]:
    """Return the shards of an optimizer's group by parameter; empty where parameters are whole."""
    found: Mapping[Tensor, Shard] = group.get("shards", {})
    return found


def sum_over_shards(values: Tensor) -> Tensor:
    """Return the sum over all workers, the same bits on each."""
    values = values.contiguous()
    dist.all_reduce(values)
    return values
