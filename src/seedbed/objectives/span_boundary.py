"""Predict the tokens of a hidden span from what stands on either side of it: SpanBERT's second term.

Source: SpanBERT, arXiv 1907.10529, section 3.2. A token is predicted from the hidden states before and behind its span and
an embedding of its place in the span, through two layers (GELU, layer norm) and the vocabulary matrix of masked LM.
Differs from it: [CLS] counts as what stands before a row's first token; spans at the end of a row have nothing behind them
and are left out, as in its code; place embeddings are as wide as the model, not 200.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.batch import Targets
from seedbed.models.config import TransformerConfig
from seedbed.models.heads import LMHead
from seedbed.models.init import init_linear
from seedbed.objectives.masking import Masked
from seedbed.objectives.units import first_of_unit

__all__ = ["NUM_PLACES", "SpanBoundaryHead", "VocabularyMatrix", "boundary_targets"]

NUM_PLACES = 20
"""Places of a span that are predicted, as in SpanBERT's code; spans that touch make longer ones."""


class SpanBoundaryHead(nn.Module):
    """Turn the two boundaries (N, D) of a span and places in it (N,) into features (N, E) for the vocabulary matrix."""

    def __init__(self, config: TransformerConfig, *, width: int, seed: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.place = nn.Embedding(NUM_PLACES, hidden)
        self.input = nn.Linear(3 * hidden, hidden)
        self.input_norm = nn.LayerNorm(hidden)
        self.output = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width)
        init_linear(self, config, seed=seed)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed + 1)
            self.place.weight.copy_(
                torch.empty(self.place.weight.shape).normal_(0.0, config.std, generator=generator)
            )

    def forward(self, left: Tensor, right: Tensor, place: Tensor) -> Tensor:
        """Return features (N, E)."""
        joined = torch.cat([left, right, self.place(place)], dim=1)
        inner = self.input_norm(F.gelu(self.input(joined)))
        features: Tensor = self.output_norm(F.gelu(self.output(inner)))
        return features


class VocabularyMatrix(nn.Module):
    """Apply the matrix of a language-model head alone, without its layer before it: (N, E) -> (N, V)."""

    def __init__(self, head: LMHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, V)."""
        return F.linear(features, self.head.weight, self.head.bias)


def boundary_targets(
    masked: Masked, places: Tensor, lengths: Tensor, *, has_prefix: bool
) -> Mapping[str, Targets]:
    """Return the term's targets and where its boundaries are.

    Args:
        masked: what was hidden.
        places: (B, L) int64 flat position in the batch of each raw token.
        lengths: (B,) int64 real tokens of each row.
        has_prefix: a token that is never hidden stands before each row.

    Returns:
        "span_boundary", with weight 0 where a span has no boundary; "span_boundary.left" and "span_boundary.right", whose
        `at` are the boundaries and whose `values` are places in the span (N,).
    """
    num_rows, length = places.shape
    is_target = (
        torch.ones_like(masked.column, dtype=torch.bool) if masked.weights is None else masked.weights > 0
    )
    taken = torch.zeros(num_rows, length, dtype=torch.bool).scatter(1, masked.column, is_target)
    begins, ends = taken.clone(), taken.clone()
    begins[:, 1:] &= ~taken[:, :-1]
    ends[:, :-1] &= ~taken[:, 1:]
    first = first_of_unit(begins).gather(1, masked.column)
    behind = length - first_of_unit(ends.flip(1)).flip(1).gather(
        1, masked.column
    )  # first token behind the span

    place = masked.column - first
    fits = is_target & (place < NUM_PLACES) & (behind < lengths[:, None])
    if not has_prefix:
        fits &= first > 0
    # A row is contiguous in the batch, so what stands before its first token is the prefix.
    left = places.gather(1, first) - 1
    right = places.gather(1, behind.clamp(max=length - 1))
    place = place.clamp(max=NUM_PLACES - 1).reshape(-1)
    target = Targets(
        at=places.gather(1, masked.column).reshape(-1),
        values=masked.values.reshape(-1),
        weights=fits.float().reshape(-1),
    )
    return {
        "span_boundary": target,
        "span_boundary.left": Targets(at=left.clamp(min=0).reshape(-1), values=place),
        "span_boundary.right": Targets(at=right.reshape(-1), values=place),
    }
