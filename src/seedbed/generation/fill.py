"""Fill masked places with a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.models.language_model import LanguageModel

__all__ = ["Filling", "fill_mask"]


@dataclass(frozen=True, slots=True)
class Filling:
    """One candidate for a masked place."""

    token_id: int
    probability: float


@torch.inference_mode()
def fill_mask(
    model: LanguageModel,
    ids: Sequence[int],
    at: Sequence[int],
    *,
    top_k: int = 5,
    token_type_ids: Sequence[int] | None = None,
    is_shifted: bool = False,
) -> list[list[Filling]]:
    """Return the most probable tokens for masked places of one row.

    Args:
        model: an encoder with a head, or a shifted model.
        ids: the row, with mask tokens in it.
        at: the places to fill; each is judged with all of them masked.
        top_k: candidates per place.
        token_type_ids: sentence marks, if any.
        is_shifted: the model predicts a token from the place before it (masked next-token prediction); it reads both sides,
            though it may be a decoder.

    Returns:
        For each place its candidates, most probable first.

    Raises:
        IncompatibleError: the model is no encoder or has no head.
        DataError: no place, a place outside the row, or a row longer than the model reads.
    """
    config = model.config
    if config.stack != "encoder" and not is_shifted:
        raise IncompatibleError(
            f"a model of family {config.family!r} only sees what comes before a place it writes.",
            hint="use generate",
        )
    if not at:
        raise DataError("there is no masked place to fill.", hint="put the mask token into the text")
    if not all(0 <= place < len(ids) for place in at):
        raise DataError(f"places {list(at)} are not all inside a row of {len(ids)} tokens.")
    if len(ids) > config.max_length:
        raise DataError(
            f"the row has {len(ids)} tokens, the model reads {config.max_length}.", hint="shorten it"
        )
    device = model.trunk.embedding.token.weight.device
    types = torch.tensor([token_type_ids], device=device) if token_type_ids is not None else None
    batch = Batch(input_ids=torch.tensor([ids], device=device), token_type_ids=types)
    if is_shifted and 0 in at:
        raise DataError(
            "nothing stands before the first place of the row.", hint="frame the row as in training"
        )
    places = torch.tensor(at, device=device) - int(is_shifted)
    hidden = model.trunk(batch, at=places)
    probabilities = model.logits(hidden.last).float().softmax(-1)
    best = probabilities.topk(min(top_k, config.vocab_size), dim=-1)
    return [
        [Filling(token_id, probability) for token_id, probability in zip(tokens, values, strict=True)]
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
