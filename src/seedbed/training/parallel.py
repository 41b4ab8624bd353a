"""Run a step on several workers: sums over all of them, gradients summed and never averaged.

One device is the plain case: with a single worker every function here is the identity. Several workers are torchrun
with torch's own DDP; the division by the global number of targets is already done in the loss.
"""

# No `from __future__ import annotations` here: DDP checks the annotations of its hook at run time.
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

__all__ = ["no_sync", "num_workers", "sum_over_workers", "worker", "wrap"]


def num_workers() -> int:
    """Return how many workers train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def worker() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def wrap(learner: nn.Module) -> nn.Module:
    """Return the learner, wrapped for gradient summing when there are several workers."""
    if num_workers() == 1:
        return learner
    # A term whose count is 0 is left out on all workers alike, so its head may get no gradient.
    wrapped = DistributedDataParallel(learner, find_unused_parameters=True)
    wrapped.register_comm_hook(None, _sum_hook)
    return wrapped


def no_sync(learner: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which backward passes accumulate gradients locally."""
    return learner.no_sync() if isinstance(learner, DistributedDataParallel) else nullcontext()


def sum_over_workers(values: Mapping[Any, float]) -> dict[Any, float]:
    """Return the sums over all workers, key by key; every worker has the same keys in the same order."""
    if num_workers() == 1:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def _sum_hook(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Replace DDP's averaging by a plain sum."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None

    def first(future: torch.futures.Future[Any]) -> torch.Tensor:
        value = future.value()
        summed: torch.Tensor = value[0] if isinstance(value, list) else value
        return summed

    done: torch.futures.Future[torch.Tensor] = work.get_future().then(first)
    return done
