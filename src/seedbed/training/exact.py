"""Add up gradients in one fixed order, whatever number of workers shares the micro-batches of a step.

Floating-point sums depend on their order. Here the order is a binary tree over an entry's micro-batches in a step: neighbours are
added, then neighbouring pairs, and so on. A worker that holds 2^k neighbouring micro-batches computes one subtree, and the
workers' sums are added in the same tree, so one worker with four micro-batches, two with two and four with one give the same
bits. The entries of a mixture have a tree each, whose sums are added in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seedbed.errors import IncompatibleError
from seedbed.training.parallel import gathered, num_workers

__all__ = ["ExactSum", "PairwiseSum"]


class PairwiseSum:
    """Sum lists of tensors pairwise, as a binary counter: a sum of 2^k of them is added only to another of 2^k.

    It holds log2(n) partial sums at most. A tensor may be None where there is nothing to add; None and x is x, to the bit.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, list[Tensor | None]]] = []

    def add(self, tensors: Sequence[Tensor | None]) -> None:
        """Take the next in order; the tensors are the sum's from now on."""
        size, total = 1, list(tensors)
        while self._parts and self._parts[-1][0] == size:
            total = _plus(self._parts.pop()[1], total)
            size *= 2
        self._parts.append((size, total))

    def total(self) -> list[Tensor | None]:
        """Return the sum and be empty; what a number that is no power of two leaves over is added from the end."""
        assert self._parts, "nothing was added"
        _, total = self._parts.pop()
        while self._parts:
            total = _plus(self._parts.pop()[1], total)
        return total


class ExactSum:
    """Collect the gradients and losses of a step's micro-batches; sum them over all workers at its end.

    Args:
        parameters: whose gradients are summed.
        places: (entry, term) of the losses.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], places: Sequence[tuple[int, str]]) -> None:
        self.parameters = list(parameters)
        self.places = list(places)
        self._entries: dict[int, tuple[int, PairwiseSum]] = {}

    def take(self, entry: int, losses: dict[tuple[int, str], Tensor], *, is_filler: bool) -> None:
        """Take what the backward passes of one micro-batch left in `.grad`, and its losses.

        Raises:
            IncompatibleError: a worker has no rows of the entry, so that the tree would be another one.
        """
        if is_filler:
            raise _another_tree(0)
        number, tree = self._entries.get(entry, (0, PairwiseSum()))
        tree.add([*(p.grad for p in self.parameters), *(losses.get(place) for place in self.places)])
        self._entries[entry] = number + 1, tree
        for parameter in self.parameters:
            parameter.grad = None

    def finish(self) -> dict[tuple[int, str], Tensor]:
        """Put the sums into `.grad`; return each worker's equal share of the losses, whose plain sum is the tree's, to the bit.

        A parameter that no worker has a gradient for keeps none.

        Raises:
            IncompatibleError: the number of workers, or of micro-batches a worker, is no power of two.
        """
        over_entries = PairwiseSum()
        for _, (number, tree) in sorted(self._entries.items()):
            if num_workers() > 1 and (number & (number - 1) or num_workers() & (num_workers() - 1)):
                raise _another_tree(number)
            over_entries.add(_over_workers(tree.total()))
        total = over_entries.total()
        for parameter, gradient in zip(self.parameters, total, strict=False):
            parameter.grad = gradient
        losses = total[len(self.parameters) :]
        return {
            p: loss / num_workers() for p, loss in zip(self.places, losses, strict=True) if loss is not None
        }


def _over_workers(own: list[Tensor | None]) -> list[Tensor | None]:
    """Return the tree's sums over all workers."""
    if num_workers() == 1:
        return own
    # Micro-batch k is of one entry on all workers, so which parameters get gradients is the same everywhere.
    there = torch.tensor([tensor is not None for tensor in own])
    assert all(torch.equal(flags, there) for flags in gathered(there)), "a gradient of some workers only"
    sums: list[Tensor | None] = []
    for tensor in own:
        if tensor is None:
            sums.append(None)
            continue
        total = PairwiseSum()
        for part in gathered(tensor):
            total.add([part])
        sums += total.total()
    return sums


def _plus(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]


def _another_tree(number: int) -> IncompatibleError:
    return IncompatibleError(
        f"training.exact needs a power of two of workers, and of micro-batches of each objective for each of them; there are"
        f" {num_workers()} workers, this one with {number} micro-batches.",
        hint="set training.micro_batch_rows so that batch_tokens / row_length / micro_batch_rows is a power of two",
    )
