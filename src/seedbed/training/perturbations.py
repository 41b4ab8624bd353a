"""Disturb embeddings where the loss grows fastest (adversarial training): FGM, PGD, FreeLB, as passes of `step.train_step`.

What is added has the shape of the token embeddings, is normed for each text of a row apart (each segment where attention stays
inside them, else the whole row; L2), and is 0 at padding. All passes of a step drop the same values, as FreeLB's do, so that the
loss grows by the disturbance alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.hashing import fold, key_from, uniform_values

__all__ = ["FGM", "PGD", "FreeLB", "norms"]


@dataclass(frozen=True, slots=True)
class FGM:
    """Train at the embeddings, and at those moved by `epsilon` along the gradient.

    Source: T. Miyato et al., arXiv 1605.07725. Differs from it: embeddings are not normalised first, so `epsilon` is absolute.

    Attributes:
        epsilon: L2 norm of the disturbance of a text.
        adversarial_weight: lambda of the loss there, beside 1 of the plain one.
    """

    epsilon: float = 1.0
    adversarial_weight: float = 1.0
    num_passes: int = 2

    def delta(
        self,
        index: int,
        batch: Batch,
        previous: Tensor,
        gradient: Tensor | None,
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        """Return zeros, then epsilon g / |g|."""
        return previous if gradient is None else self.epsilon * _direction(gradient, batch)

    def weight(self, index: int) -> float:
        """Return 1, then lambda."""
        return self.adversarial_weight if index else 1.0


@dataclass(frozen=True, slots=True)
class PGD:
    """Train at the embeddings, and at the end of `num_steps` steps of ascent, each drawn back into a ball.

    Source: A. Madry et al., arXiv 1706.06083, section 2.1. Differs from it: the ball and the steps are L2, the start is the text
    itself, and the plain loss is trained beside the adversarial one, as is done with texts.

    Attributes:
        epsilon: radius of the ball.
        step_size: norm of a step.
        num_steps: steps of ascent; the weights are trained at the last place only.
        adversarial_weight: of the loss there, beside 1 of the plain one.
    """

    epsilon: float = 1.0
    step_size: float = 0.3
    num_steps: int = 3
    adversarial_weight: float = 1.0

    @property
    def num_passes(self) -> int:
        """One at the text, one a step."""
        return 1 + self.num_steps

    def delta(
        self,
        index: int,
        batch: Batch,
        previous: Tensor,
        gradient: Tensor | None,
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        """Return zeros, then a step further each time."""
        if gradient is None:
            return previous
        return project(previous + self.step_size * _direction(gradient, batch), batch, self.epsilon)

    def weight(self, index: int) -> float:
        """Return 1 for the text, 0 on the way, the adversarial weight at its end."""
        return 1.0 if index == 0 else self.adversarial_weight if index == self.num_steps else 0.0


@dataclass(frozen=True, slots=True)
class FreeLB:
    """Take steps of ascent, and train on the mean of the gradients of all of them.

    Source: C. Zhu et al., arXiv 1909.11764, algorithm 1.

    Attributes:
        epsilon: radius of the ball; 0: no bound.
        step_size: alpha, norm of a step.
        num_steps: K.
        start: bound of the uniform start times sqrt(length * width), about the norm of the start times sqrt(3).
    """

    epsilon: float = 0.5
    step_size: float = 0.1
    num_steps: int = 3
    start: float = 0.1

    @property
    def num_passes(self) -> int:
        """K."""
        return self.num_steps

    def delta(
        self,
        index: int,
        batch: Batch,
        previous: Tensor,
        gradient: Tensor | None,
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        """Return the random start, then a step further each time."""
        if gradient is not None:
            return project(previous + self.step_size * _direction(gradient, batch), batch, self.epsilon)
        num_rows, length, width = previous.shape
        rows = torch.arange(num_rows, device=previous.device) if batch.row_ids is None else batch.row_ids
        own = key_from("perturbation", device=previous.device)
        if key is not None:
            own = fold(own, key.to(torch.int32))
        is_text = _is_text(batch, previous)
        spread = self.start / (_sum_over_texts(is_text, batch) * width).clamp(min=1.0).sqrt()
        return project(spread * is_text * uniform_values(own, rows, length, width), batch, self.epsilon)

    def weight(self, index: int) -> float:
        """Return 1 / K."""
        return 1.0 / self.num_steps


def norms(values: Tensor, batch: Batch) -> Tensor:
    """Return the L2 norm of each text's values (B, T, E), at each of its tokens: (B, T, 1)."""
    return _sum_over_texts(values.square().sum(dim=-1, keepdim=True), batch).sqrt()


def project(delta: Tensor, batch: Batch, epsilon: float) -> Tensor:
    """Draw disturbances beyond the ball back onto it; an epsilon of 0 is no bound."""
    if not epsilon:
        return delta
    return delta * (epsilon / norms(delta, batch).clamp(min=1e-30)).clamp(max=1.0)


def _direction(gradient: Tensor, batch: Batch) -> Tensor:
    """Return the gradient with norm 1 for each text; 0 where it is 0.

    A gradient that is not finite gives a disturbance that is not: the loss and the gradient of the next pass follow, and the
    step is skipped whole.
    """
    gradient = gradient.float() * _is_text(batch, gradient)
    # Scaled first: squares of the small gradients of a loss divided by many targets would vanish in float32.
    largest = gradient.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    scaled = gradient / largest
    return scaled / norms(scaled, batch).clamp(min=1e-12)


def _is_text(batch: Batch, like: Tensor) -> Tensor:
    """Return 1 at tokens, 0 at padding, (B, T, 1)."""
    if batch.segment_ids is None:
        return torch.ones_like(like[..., :1], dtype=torch.float32)
    return (batch.segment_ids > 0).to(torch.float32)[..., None]


def _sum_over_texts(values: Tensor, batch: Batch) -> Tensor:
    """Return the sum of (B, T, 1) over each token's segment, or over its row, at each token."""
    if batch.segment_ids is None or not batch.is_segmented:
        return values.sum(dim=1, keepdim=True).expand_as(values)
    segments = batch.segment_ids.long()[..., None]
    sums = values.new_zeros(values.shape[0], values.shape[1] + 1, 1).scatter_add(1, segments, values)
    return sums.gather(1, segments)
