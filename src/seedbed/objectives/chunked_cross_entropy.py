"""Cross-entropy over a large vocabulary without ever holding all logits: by portions, each turned into its gradients at once.

With N targets and V classes the plain loss keeps N * V logits, and as many probabilities, until the backward pass. Here a
portion's logits live only until its loss and its gradients with respect to features, matrix and bias are known: (N, D) and (V, D)
numbers in their place, and as many products as before. It is what the Liger kernels (2410.10989) and
`torch.nn.functional.linear_cross_entropy` of torch 2.13 do. Ours runs on torch 2.11, knows weights of targets, z-loss and capped
logits, and sums the matrix's gradient over portions in float32. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seedbed.models.heads import LMHead

__all__ = ["Kernel", "chunked_cross_entropy", "compile_losses", "loss_and_gradient"]

Kernel = Callable[..., tuple[Tensor, Tensor]]


def chunked_cross_entropy(
    features: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    values: Tensor,
    weights: Tensor | None,
    *,
    chunk_rows: int,
    compute_dtype: torch.dtype,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    kernel: Kernel | None = None,
) -> Tensor:
    """Return the summed loss, 0-d float32, as `objectives.base.cross_entropy` computes it from logits.

    Args:
        features: (N, D) what the matrix is applied to.
        matrix: (V, D).
        bias: (V,) or None.
        values: (N,) int64 classes.
        weights: (N,) float32 of the targets, or None.
        chunk_rows: N' rows of logits that exist at a time, at most.
        compute_dtype: of the products; the rest is float32.
        label_smoothing: share of the target mass spread over all classes.
        z_loss: weight of log(Z)^2.
        softcap: logits are held within +- this, as `LMHead.cap` does; 0: they are not.
        kernel: `loss_and_gradient`, compiled; None: as it is.
    """
    loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
        features,
        matrix,
        bias,
        values,
        weights,
        max(1, chunk_rows),
        compute_dtype,
        (label_smoothing, z_loss, softcap),
        kernel or loss_and_gradient,
        torch.is_grad_enabled(),
    )
    return loss


def loss_and_gradient(
    logits: Tensor,
    values: Tensor,
    weights: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    by_comparison: bool,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a portion, float32, and its gradient with respect to the logits (N', V), in their number type.

    The right class is found by comparison on a GPU: that melts into the pass over the logits, where scattering would be a kernel
    of its own, with a sort before it to be deterministic. On a CPU, which compares slowly, it is scattered.
    """
    wide = logits.float()
    if softcap:
        capped = torch.tanh(wide / softcap)
        wide = softcap * capped
    log_z = wide.logsumexp(1)
    right = wide.gather(1, values[:, None])[:, 0]
    losses = log_z - (1.0 - label_smoothing) * right
    if label_smoothing:
        losses = losses - label_smoothing * wide.mean(1)
    if z_loss:
        losses = losses + z_loss * log_z.square()
    gradient = (wide - log_z[:, None]).exp()
    if z_loss:
        gradient = gradient * (1.0 + 2.0 * z_loss * log_z)[:, None]
    if label_smoothing:
        gradient = gradient - label_smoothing / logits.shape[1]
    share = 1.0 - label_smoothing
    if by_comparison:
        is_right = torch.arange(logits.shape[1], device=logits.device) == values[:, None]
        gradient = torch.where(is_right, gradient - share, gradient)
    else:
        gradient = gradient.scatter_add(1, values[:, None], torch.full_like(right, -share)[:, None])
    if softcap:
        gradient = gradient * (1.0 - capped.square())
    if weights is not None:
        losses, gradient = losses * weights, gradient * weights[:, None]
    return losses.sum(), gradient.to(logits.dtype)


def compile_losses(module: nn.Module, *, backend: str = "inductor") -> None:
    """Let losses by portions of the heads inside a module run compiled: about two passes over the logits in place of ten.

    The products stay outside; sizes may vary, so that the last portion, which may be smaller, compiles nothing.
    """
    for head in module.modules():
        if isinstance(head, LMHead):
            head.loss_kernel = torch.compile(loss_and_gradient, backend=backend, dynamic=True)


class _Chunked(torch.autograd.Function):
    """Compute gradients beside the loss; the backward pass only multiplies them."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        values: Tensor,
        weights: Tensor | None,
        chunk_rows: int,
        compute_dtype: torch.dtype,
        settings: tuple[float, float, float],
        kernel: Kernel,
        wants_gradients: bool,
    ) -> Tensor:
        # Casts are made here, not left to autocast: it would keep a copy of the matrix made without a graph, and hand it to
        # whoever multiplies by the matrix next.
        x, w = features.to(compute_dtype), matrix.to(compute_dtype)
        b = None if bias is None else bias.to(compute_dtype)
        of_features, of_matrix, of_bias = ctx.needs_input_grad[:3] if wants_gradients else (False,) * 3
        dx = torch.empty_like(x) if of_features else None
        dw = torch.zeros(matrix.shape, dtype=torch.float32, device=matrix.device) if of_matrix else None
        db = torch.zeros(w.shape[0], dtype=torch.float32, device=matrix.device) if of_bias else None
        by_comparison = x.device.type != "cpu"
        total = torch.zeros((), dtype=torch.float32, device=features.device)
        num_rows = x.shape[0]
        num_chunks = max(1, -(-num_rows // chunk_rows))
        size = max(
            1, -(-num_rows // num_chunks)
        )  # of nearly equal size: one shape, or two, for a compiled kernel
        with _without_autocast(x.device.type):
            for start in range(0, num_rows, size):
                rows = slice(start, start + size)
                own = None if weights is None else weights[rows]
                loss, gradient = kernel(F.linear(x[rows], w, b), values[rows], own, *settings, by_comparison)
                total += loss
                if dx is not None:
                    dx[rows] = gradient @ w
                if dw is not None:
                    dw += gradient.T @ x[rows]
                if db is not None:
                    db += gradient.sum(0, dtype=torch.float32)
        ctx.save_for_backward(dx, dw, db)
        ctx.kinds = features.dtype, matrix.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grown = [
            None if gradient is None else (gradient * scale).to(kind)
            for gradient, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
        ]
        return (*grown, *(None,) * 7)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context in which nothing is cast."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
