"""Notice when the workers of a run no longer hold the same weights: a flipped bit, a lost update, a bug.

All workers apply the same summed gradient to the same weights, so these stay equal to the bit. Where memory or a device errs,
nothing fails: the workers go on with different models, and the gradient is a sum over both (silent data corruption; 6 of 419
unexpected interruptions of the training of Llama 3 405B, 2407.21783).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedbed.errors import IntegrityError
from seedbed.training.hooks import Hook
from seedbed.training.parallel import gathered, num_workers
from seedbed.training.state import TrainingState

__all__ = ["DriftHook", "bit_sums"]


class DriftHook(Hook):
    """Compare the weights of all workers now and then.

    Args:
        every: windows between comparisons.
    """

    name = "drift"

    def __init__(self, *, every: int = 50) -> None:
        self.every = every

    def is_due(self, state: TrainingState) -> bool:
        """Say whether to compare; never with one worker."""
        return num_workers() > 1 and state.window % self.every == 0

    def act(self, state: TrainingState) -> None:
        """Compare.

        Raises:
            IntegrityError: two workers differ; names the parameter, and the worker where most others agree.
        """
        parameters = state.parameters()
        sums = torch.stack(gathered(bit_sums(list(parameters.values()))))  # (workers, parameters)
        usual = sums.mode(dim=0).values
        wrong = (sums != usual).nonzero().tolist()
        if not wrong:
            return
        worker, index = wrong[0]
        name = list(parameters)[index]
        who = f"worker {worker} differs from the others" if num_workers() > 2 else "workers 0 and 1 differ"
        raise IntegrityError(
            f"{who} in {name} after step {state.window} ({len({i for _, i in wrong})} of {len(parameters)} parameters): their"
            f" weights were the same to the bit at step {max(0, state.window - self.every)}.",
            hint="a memory or device error is likely; the same command goes on from the newest checkpoint, and those since that"
            " step may hold its effects: move them away to go on from an older one",
        )


def bit_sums(tensors: list[Tensor]) -> Tensor:
    """Return (n,) int64: of each tensor the sum of its bits read as whole numbers, which any single flipped bit changes."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [t.detach().view(kinds[t.element_size()]).sum(dtype=torch.int64) for t in tensors]
    return torch.stack(sums).cpu()
