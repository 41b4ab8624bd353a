"""Send gradients as products of thin matrices (PowerSGD, 1905.13727; torch's hook), and keep its memory as a run must.

What a worker could not send is added to its next gradient, and the next products begin where the last ended. Both are saved with
the run, for each worker, and both are left alone by a step whose gradient is not finite: torch's hook alone would add that to all
later ones.
"""

# No `from __future__ import annotations` here: DDP checks the annotations of its hook at run time.
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

__all__ = ["PowerSGDMemory"]

_START, _RANK = 2, 4
"""The first steps, whose gradients are largest, travel whole; then as matrices of this rank."""

_ONLY = 0
"""Number of the one bucket there is."""


class PowerSGDMemory:
    """Hold what PowerSGD remembers on this worker.

    Attributes:
        num_steps: steps whose gradients travelled, at most as many as matter: those that travel whole.
        tensors: `error` (W,) for W weights, what was not sent; `p` and `q`, flat, the last products. Empty before the first.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.tensors: dict[str, Tensor] = {}

    def saved(self) -> dict[str, Tensor]:
        """Return all of it as tensors."""
        return {"num_steps": torch.tensor(self.num_steps), **self.tensors}

    def load(self, saved: Mapping[str, Tensor], *, device: torch.device) -> None:
        """Take what `saved` returned; nothing begins anew."""
        self.num_steps = int(saved["num_steps"]) if saved else 0
        self.tensors = {name: t.clone().to(device) for name, t in saved.items() if name != "num_steps"}

    def register(self, module: DistributedDataParallel) -> None:
        """Let the module's gradients travel so, summed, and remember here what they leave; it must have one bucket.

        In one bucket, and a group of its own: the hook starts further collectives from callbacks, at times of their own, and they
        must not come between others in another order on another worker (gloo: "received data size doesn't match").
        """
        state = PowerSGDState(
            dist.new_group(), matrix_approximation_rank=_RANK, start_powerSGD_iter=_START, random_seed=0
        )
        own = (("error", state.error_dict), ("p", state.p_memory_dict), ("q", state.q_memory_dict))

        def put_back() -> None:
            state.iter = self.num_steps
            for name, kept in own:
                kept.clear()
                if name in self.tensors:
                    # Products are made in place: what is remembered must outlive a step that is skipped.
                    kept[_ONLY] = self.tensors[name].clone() if name != "error" else self.tensors[name]

        def hook(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            assert bucket.is_last()
            assert bucket.index() == _ONLY
            put_back()

            def summed(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
                mean = future.value()
                # A mean that is not finite is so on all workers: what was remembered before it stays.
                if bool(torch.isfinite(mean).all()):
                    self.tensors = {name: kept[_ONLY] for name, kept in own if _ONLY in kept}
                self.num_steps = min(state.iter, _START)
                return mean * dist.get_world_size()

            done: torch.futures.Future[torch.Tensor] = powerSGD_hook(state, bucket).then(summed)
            return done

        module.register_comm_hook(state, hook)
