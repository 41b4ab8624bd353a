"""Sort parameters into groups: those that decay and those that do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["decay_groups"]


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Put matrices (two dimensions or more, embeddings included) into a decaying group and the rest into another.

    A parameter that has several names (tied embeddings) is taken once, under its first. Frozen parameters are left out.

    Returns:
        Groups with `params`, `names` in the same order, and `weight_decay`; empty groups are left out.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "weight_decay": weight_decay},
        {"params": [], "names": [], "weight_decay": 0.0},
    ]
    seen: set[int] = set()
    for name, parameter in named_parameters:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        group = groups[0 if parameter.ndim >= 2 else 1]
        group["params"].append(parameter)
        group["names"].append(name)
    return [group for group in groups if group["params"]]
