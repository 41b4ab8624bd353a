"""Write with a masked model trained by masked diffusion: begin with masks, reveal some at each step.

Source: MDLM (S. Sahoo et al., arXiv 2406.07524, section 3.4): each step reveals a share of the masks at random and never
changes what is revealed. `order="confidence"` reveals the surest places instead (MaskGIT, H. Chang et al., arXiv
2202.04200, section 3.2), which writes safer and less varied text.
Differs from the first: the number revealed at a step is exact, not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from seedbed.batch import Batch
from seedbed.errors import ConfigError, DataError, IncompatibleError
from seedbed.generation.samplers import Sampler
from seedbed.hashing import fold, key_from
from seedbed.models.language_model import LanguageModel

__all__ = ["diffuse"]


@torch.inference_mode()
def diffuse(
    model: LanguageModel,
    ids: Sequence[int],
    *,
    mask_id: int,
    num_steps: int,
    sampler: Sampler | None = None,
    order: Literal["random", "confidence"] = "random",
) -> list[int]:
    """Fill every mask of a row in `num_steps` passes of the model.

    Args:
        model: a model with a head that predicts hidden tokens where they are.
        ids: the row, framed as in training; its masks are written, wherever they are, the rest is given.
        mask_id: the mask token; it is never written.
        num_steps: passes; as many as masks is one token at a time, fewer is faster and looser.
        sampler: None is greedy.
        order: which places a step reveals.

    Returns:
        The row without masks.

    Raises:
        ConfigError: fewer than one step.
        DataError: the row is longer than the model reads.
        IncompatibleError: the model has no head.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps is {num_steps}.", hint="1 writes everything at once")
    if len(ids) > model.config.max_length:
        raise DataError(
            f"the row has {len(ids)} tokens, the model reads {model.config.max_length}.", hint="shorten it"
        )
    if model.head is None:
        raise IncompatibleError("this model has no head to write with.")
    sampler = sampler or Sampler()
    device = model.trunk.embedding.token.weight.device
    row = torch.tensor(ids, device=device)
    total = int((row == mask_id).sum())
    for step in range(min(num_steps, total)):
        hidden = torch.nonzero(row == mask_id)[:, 0]
        left = total - total * (step + 1) // min(num_steps, total)
        logits = model.logits(model.trunk(Batch(row[None]), at=hidden).last).float()
        logits[:, mask_id] = float("-inf")
        chosen = sampler(logits, rows=hidden, step=step)
        if order == "confidence":
            rank = (
                logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].argsort(descending=True, stable=True)
            )
        else:
            draws = fold(fold(key_from("diffusion", sampler.seed), hidden.cpu()), step)
            rank = draws.argsort(stable=True).to(device)
        revealed = rank[: len(hidden) - left]
        row[hidden[revealed]] = chosen[revealed]
    written: list[int] = row.tolist()
    return written
