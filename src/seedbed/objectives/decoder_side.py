"""Describe what an encoder-decoder reads and writes; shared by the objectives that train one."""

from __future__ import annotations

import torch
from torch import Tensor

from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Vocabulary

__all__ = ["decoder_inputs", "encoder_side", "start_id"]


def start_id(vocabulary: Vocabulary) -> int:
    """Return the token a decoder begins with: the model's own, else the pad token, as T5.

    Raises:
        IncompatibleError: there is neither.
    """
    found = vocabulary.decoder_start_id if vocabulary.decoder_start_id is not None else vocabulary.pad_id
    if found is None:
        raise IncompatibleError(
            "a decoder needs a token to begin with; the vocabulary has no pad token.",
            hint="learn a tokenizer with seedbed, or name decoder_start_token_id in the model's config.json",
        )
    return found


def decoder_inputs(written: Tensor, start: int) -> Tensor:
    """Return the decoder's inputs (B, S): what it writes, shifted by one behind the start token."""
    return torch.cat([torch.full_like(written[:, :1], start), written[:, :-1]], dim=1)


def encoder_side(lengths: Tensor, width: int) -> Tensor | None:
    """Return segments (B, width) int32 of rows of these lengths, 0 past their ends; None where none is shorter."""
    inside = torch.arange(width)[None, :] < lengths[:, None]
    return None if bool(inside.all()) else inside.to(torch.int32)
