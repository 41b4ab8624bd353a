"""Compute a summed cross-entropy and its gradient while the logits of a few rows are in the cache.

On a CPU the loss of a small model is limited by memory: in the plain form the logits over a vocabulary pass through it as float32
six times (widened, log-softmax, zeros, gradient of the loss, of the log-softmax, narrowed again), 27 % of a mini preset's step.
Here a block of rows is widened, exponentiated and turned into its gradient at once, and only that is kept, in the type of the
logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["applies", "summed_loss"]

_BLOCK = 1 << 19
"""Logits of a block: 2 MiB of float32, which the second-level cache of today's cores holds."""


def applies(logits: Tensor) -> bool:
    """Say whether this form is the faster one: on a CPU, where a gradient is wanted.

    In float16 the gradient kept here, not yet scaled, could underflow.
    """
    return (
        logits.device.type == "cpu"
        and logits.dtype in (torch.float32, torch.bfloat16)
        and torch.is_grad_enabled()
        and logits.requires_grad
    )


def summed_loss(
    logits: Tensor,
    values: Tensor,
    weights: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Return sum_i w_i ((1 - e) (-log p_i(v_i)) + e mean_c (-log p_i(c)) + z lse_i^2), 0-d float32.

    Args:
        logits: (N, C) float32 or bfloat16.
        values: (N,) int64 classes.
        weights: (N,) w, or None: all 1.
        label_smoothing: e.
        z_loss: z, the weight of the squared log-partition.
    """
    loss: Tensor = _SummedLoss.apply(logits, values, weights, label_smoothing, z_loss)  # type: ignore[no-untyped-call]
    return loss


class _SummedLoss(torch.autograd.Function):
    """Keep the gradient, computed on the way forward; the way back only scales it, in place: autograd refuses to walk it twice.

    A second tensor as large as the logits would take as long to write as a tenth of the product that made them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        values: Tensor,
        weights: Tensor | None,
        label_smoothing: float,
        z_loss: float,
    ) -> Tensor:
        num_rows, num_classes = logits.shape
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        rows = max(1, _BLOCK // num_classes)
        for start in range(0, num_rows, rows):
            block = slice(start, start + rows)
            wide = logits[block].float()
            at = values[block, None]
            hit = wide.gather(1, at)
            largest = wide.amax(dim=1, keepdim=True)
            p = wide.softmax(dim=1)
            spread = -p.amax(
                dim=1, keepdim=True
            ).log()  # of the partition over the largest logit's share of it
            per_row = spread + (largest - hit)  # large logits cancel before anything small is added to them
            if label_smoothing:
                mean = wide.mean(dim=1, keepdim=True)
                per_row = torch.lerp(per_row, spread + (largest - mean), label_smoothing)
            if z_loss:
                partition = spread + largest
                per_row = per_row + z_loss * partition.square()
                p.mul_(1.0 + 2.0 * z_loss * partition)
            if label_smoothing:
                p.sub_(label_smoothing / num_classes)
            p.scatter_add_(1, at, torch.full_like(hit, label_smoothing - 1.0))
            if weights is not None:
                per_row = per_row * weights[block, None]
                p.mul_(weights[block, None])
            total += per_row.sum()
            gradient[block] = p
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outputs[0]), None, None, None, None
