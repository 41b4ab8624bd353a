"""Smoothness: the answer shall not change when the embeddings are moved a little in the worst direction.

Source: SMART, H. Jiang et al., arXiv 1911.03437, section 3.1 and its released code: a step of ascent on the symmetric divergence
between the answers, from a small random start, then the divergence at that point as a loss.
Differs from it: the proximal term of its section 3.2 is left out (a small learning rate and early stopping hold the weights near
the start); the start is uniform instead of normal, with the same deviation, drawn by the counter hash of its place; all passes
drop the same values, so that the divergence is that of the disturbance alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.hashing import fold, key_from, uniform_values
from seedbed.objectives.base import Objective, Term
from seedbed.objectives.wrapped import Pass, WrappedObjective, divergence, run_pass, weighted

__all__ = ["Smoothness"]


class Smoothness(WrappedObjective):
    """The objective's terms, each with a companion "smoothness".

    Args:
        inner: the objective.
        weight: of the divergence (SMART's lambda).
        start_std: standard deviation of the random start.
        step_size: eta, how far one step of ascent moves the largest coordinate of a token's embedding.
        epsilon: bound of every coordinate of the disturbance.
        num_steps: steps of ascent.
    """

    def __init__(
        self,
        inner: Objective,
        *,
        weight: float,
        start_std: float,
        step_size: float,
        epsilon: float,
        num_steps: int,
    ) -> None:
        super().__init__(inner, name="smoothness", weight=weight)
        self.start_std = start_std
        self.step_size = step_size
        self.epsilon = epsilon
        self.num_steps = num_steps

    def losses(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
        with_details: bool = False,
    ) -> dict[str, Term]:
        """Return the objective's losses, and the divergence at the worst disturbance found, summed over targets."""

        def run(delta: Tensor | None, *, details: bool = False) -> Pass:
            moved = delta if embedding_delta is None or delta is None else embedding_delta + delta
            return run_pass(
                self.inner,
                modules,
                batch,
                targets,
                dropout_key=dropout_key,
                embedding_delta=embedding_delta if moved is None else moved,
                with_details=details,
            )

        plain = run(None, details=with_details)
        with torch.enable_grad():
            delta = self._start(modules, batch, dropout_key)
            for _ in range(self.num_steps):
                delta = delta.detach().requires_grad_()
                apart = self._apart(plain, run(delta), detach=True)
                (gradient,) = torch.autograd.grad(torch.stack(list(apart.values())).sum(), delta)
                largest = gradient.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
                delta = (delta + self.step_size * gradient / largest).clamp(-self.epsilon, self.epsilon)
        terms = dict(plain.terms)
        for term, value in self._apart(plain, run(delta.detach()), detach=False).items():
            terms[self.companions[term]] = Term(value, {})
        return terms

    def _apart(self, plain: Pass, moved: Pass, *, detach: bool) -> dict[str, Tensor]:
        """Return the divergence of every term, summed over targets."""
        found = {}
        for term in plain.terms:
            logits, target = plain.logits(term), plain.targets[term]
            found[term] = weighted(
                divergence(logits.detach() if detach else logits, moved.logits(term), target), target
            )
        return found

    def _start(self, modules: Mapping[str, nn.Module], batch: Batch, dropout_key: Tensor | None) -> Tensor:
        """Return the random start (B, T, E)."""
        config: Any = modules["trunk"].config
        device = batch.input_ids.device
        key = key_from("smoothness", device=device)
        if dropout_key is not None:
            key = fold(key, dropout_key.to(torch.int32))
        num_rows, length = batch.input_ids.shape
        rows = torch.arange(num_rows, device=device) if batch.row_ids is None else batch.row_ids
        bound = self.start_std * 3**0.5  # of a uniform distribution with this deviation
        return bound * uniform_values(key, rows, length, config.embedding_width)
