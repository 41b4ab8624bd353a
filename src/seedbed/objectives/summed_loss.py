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
    """Keep the gradient, computed on the way forward; the way back only scales it."""

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
            narrow = logits[block]
            wide = (
                narrow.clone() if narrow.dtype == torch.float32 else narrow.float()
            )  # never the logits themselves
            at = values[block, None]
            hit = wide.gather(1, at)
            mean = wide.mean(dim=1, keepdim=True) if label_smoothing else None
            largest = wide.amax(dim=1, keepdim=True)
            mass = wide.sub_(largest).exp_().sum(dim=1, keepdim=True)
            spread = mass.log()
            per_row = spread + (largest - hit)  # large logits cancel before anything small is added to them
            if mean is not None:
                per_row = torch.lerp(per_row, spread + (largest - mean), label_smoothing)
            scale = 1.0 / mass
            if z_loss:
                partition = spread + largest
                per_row = per_row + z_loss * partition.square()
                scale = scale * (1.0 + 2.0 * z_loss * partition)
            wide.mul_(scale)
            if label_smoothing:
                wide.sub_(label_smoothing / num_classes)
            wide.scatter_add_(1, at, torch.full_like(hit, label_smoothing - 1.0))
            if weights is not None:
                per_row = per_row * weights[block, None]
                wide.mul_(weights[block, None])
            total += per_row.sum()
            gradient[block] = wide
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None, None
