"""Give a model rows for new tokens, each the mean of the rows of the pieces it was written with before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seedbed.models.language_model import LanguageModel

__all__ = ["extend_vocabulary"]

_ROWS = ("embedding.token.weight", "head.weight", "head.bias")
"""What has a row a token; a tied head has no matrix of its own."""


@torch.no_grad()
def extend_vocabulary(model: LanguageModel, pieces: Mapping[int, Sequence[int]]) -> LanguageModel:
    """Return a copy of a model that knows more tokens; old tokens keep their rows and, to rounding, their logits.

    Input embeddings, an untied output matrix and the output offsets of a new token are the means over its pieces. A new token
    thus begins as likely as its pieces are on average where all of them fit, and takes some probability from the others.

    Source: means of the pieces: e.g. AVocaDo (2110.13434), and Gee et al., "Fast vocabulary transfer" (2402.09977).

    Args:
        model: any; it is not changed. Rows it has beyond its vocabulary (padding) are taken first.
        pieces: old ids by new id; every id from the vocabulary's end on, without gaps.
    """
    size = max(model.config.vocab_size, max(pieces) + 1)
    tensors = {
        name: _extended(tensor, pieces, size) if name.endswith(_ROWS) else tensor
        for name, tensor in model.named_parameters()
    }
    return LanguageModel.of(
        model.config.updated(vocab_size=size),
        tensors,
        has_head=model.head is not None,
        extras=list(model.extras),
        source="the extended model",
    )


def _extended(tensor: Tensor, pieces: Mapping[int, Sequence[int]], size: int) -> Tensor:
    """Return a table (V, ...) with `size` rows, those of new tokens the means of their pieces'."""
    table = torch.zeros(size, *tensor.shape[1:], dtype=tensor.dtype)
    table[: tensor.shape[0]] = tensor.cpu()
    for token_id, parts in pieces.items():
        table[token_id] = tensor[list(parts)].float().mean(dim=0).cpu()
    return table
