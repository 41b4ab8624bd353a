"""Let a model read rows longer than the positions it learned.

Every way gives a model of the same family with the same weights elsewhere; train it on for a while at the new length, for none
of them is free of loss where distances appear that the model has never seen.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.errors import IncompatibleError
from seedbed.models.config import TransformerConfig
from seedbed.models.language_model import LanguageModel

__all__ = ["METHODS", "Extension", "extend_positions", "interpolated", "ntk_theta", "repeated"]

Extension = Literal["repeat", "interpolate", "ntk"]

METHODS: dict[str, tuple[Extension, ...]] = {
    "learned": ("repeat", "interpolate"),
    "rope": ("ntk", "interpolate"),
}
"""The ways of each position scheme, the default first; the other schemes reach any length as they are."""

_TABLE = "embedding.position.weight"


def extend_positions(
    model: LanguageModel, max_length: int, *, method: Extension | None = None
) -> LanguageModel:
    """Return a copy of a model that reads rows of up to `max_length` tokens.

    - learned, `repeat`: the table is tiled, position p takes the vector of p mod L (Longformer, 2004.05150, section 5). Rows that
      were short enough before give the same outputs.
    - learned, `interpolate`: vectors between the old ones, first and last stay (as ViT does, 2010.11929, section 3.2).
    - rope, `ntk`: theta' = theta s^(K / (K - 2)): the slowest wave spans the new length, the fastest hardly moves (bloc97, 2023;
      written down in 2309.00071, section 3.1).
    - rope, `interpolate`: positions are divided by s (2306.15595).
    - sinusoidal, alibi, relative, none: `max_length` alone changes; nothing was learned by place.

    s is the new length over the old. Layers with local attention meet no longer distances and keep their rotary base.
    Descriptions change in `max_length`, `rope_theta` and `rope_scale` only, so what could be exported still can.

    Args:
        model: any; it is not changed.
        max_length: tokens, not fewer than now.
        method: None is the first of the scheme.

    Raises:
        IncompatibleError: the length is shorter than now, the method is not one of the scheme's, or the model holds other
            weights that depend on its length.
    """
    config = model.config
    if max_length < config.max_length:
        raise IncompatibleError(
            f"the model reads {config.max_length} tokens already, {max_length} would be fewer.",
            hint="shorter rows need no change",
        )
    methods: tuple[Extension | None, ...] = METHODS.get(config.positions, (None,))
    method = methods[0] if method is None else method
    if method not in methods:
        ways = ", ".join(str(way) for way in methods if way) or "no method; leave it out"
        raise IncompatibleError(
            f"{config.positions} positions cannot be extended by {method!r}.", hint=f"they take {ways}"
        )
    tensors = {
        name: _table(tensor, config, max_length, method) if name.endswith(_TABLE) else tensor
        for name, tensor in model.named_parameters()
    }
    factor = max_length / config.max_length
    changes: dict[str, float] = {"max_length": max_length}
    if config.positions == "rope" and method == "ntk":
        changes["rope_theta"] = ntk_theta(config.rope_theta, factor, config.head_dim)
    elif config.positions == "rope":
        changes["rope_scale"] = config.rope_scale * factor
    return LanguageModel.of(
        config.updated(**changes),
        tensors,
        has_head=model.head is not None,
        extras=list(model.extras),
        source="the extended model",
    )


def repeated(table: Tensor, length: int) -> Tensor:
    """Return a table (L, E) tiled to (length, E)."""
    return table[torch.arange(length, device=table.device) % table.shape[0]]


def interpolated(table: Tensor, length: int) -> Tensor:
    """Return a table (L, E) stretched to (length, E), linearly between neighbours; the first and last vector stay."""
    stretched: Tensor = F.interpolate(table.T[None], size=length, mode="linear", align_corners=True)
    return stretched[0].T.contiguous()


def ntk_theta(theta: float, factor: float, head_dim: int) -> float:
    """Return the base whose slowest wave is `factor` times as long, while the fastest stays.

    Source: 2309.00071, section 3.1 (after "NTK-aware scaled RoPE", bloc97, 2023). A head of two channels has one wave only,
    which is the fastest: nothing to stretch.
    """
    return theta if head_dim == 2 else theta * factor ** (head_dim / (head_dim - 2))


@torch.no_grad()
def _table(tensor: Tensor, config: TransformerConfig, length: int, method: Extension | None) -> Tensor:
    """Return a position table for another length; the rows before `position_offset` are no positions and stay."""
    head, body = tensor[: config.position_offset], tensor[config.position_offset :]
    return torch.cat([head, repeated(body, length) if method == "repeat" else interpolated(body, length)])
