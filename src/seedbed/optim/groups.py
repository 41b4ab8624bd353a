"""Sort parameters into groups of equal rate and decay, by rules of the recipe, by depth and by width.

A parameter's rate is the scheduled rate times its group's `rate_scale`. Which optimizer does with it what is not decided
here; `kind` lets an optimizer that treats parameters in two ways keep them apart.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from seedbed.config import Config
from seedbed.errors import ConfigError

__all__ = ["GroupRule", "WidthScaling", "is_hidden_matrix", "parameter_groups", "set_groups"]

WidthScaling = Literal["none", "inverse", "inverse_sqrt"]

_LAYER = re.compile(r"^(?P<stack>.*?)layers\.(?P<index>\d+)\.")
_NOT_HIDDEN = re.compile(r"embedding|norm|relative|position|gate")


class GroupRule(Config):
    """Give the parameters whose name matches a rate and a decay of their own; the first rule that matches counts."""

    pattern: str = Field(
        "*",
        min_length=1,
        description="Parameter names, with * and ?, as in trunk.embedding.*; after `re:` a regular expression that is"
        " searched in the name, as in re:layers\\.[01]\\.",
    )
    rate_scale: float = Field(1.0, ge=0.0, description="Times the learning rate; 0 holds them still.")
    weight_decay: float | None = Field(
        None, ge=0.0, description="Decay; null: as without the rule (matrices only)."
    )
    is_optional: bool = Field(False, description="May match no parameter; otherwise that is an error.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    def matches(self, name: str) -> bool:
        """Say whether this rule is about a parameter."""
        if self.pattern.startswith("re:"):
            return re.search(self.pattern[3:], name) is not None
        return fnmatch.fnmatchcase(name, self.pattern)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    rules: Sequence[GroupRule] = (),
    layer_rate_decay: float = 1.0,
    width_scaling: WidthScaling = "none",
    base_width: int = 256,
    kind: Callable[[str, nn.Parameter], str] = lambda name, parameter: "",
    kind_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Put every trainable parameter into exactly one group; matrices decay (embeddings included), the rest does not.

    A parameter that has several names (tied embeddings) is taken once, under its first. Frozen parameters are left out.

    Args:
        named_parameters: of all that trains.
        weight_decay: of matrices without a rule.
        rules: in order; the first that matches a name counts.
        layer_rate_decay: d in `rate * d ** (L + 1 - depth)`: embeddings have depth 0, layer i of L has i + 1, what
            follows the last layer L + 1 (arXiv 2003.10555, 2106.08254). Counted for each stack of layers by itself.
        width_scaling: "inverse": hidden matrices times base_width / width, as muP scales Adam's rates (arXiv 2203.03466,
            table 8, without its multipliers and initial values); "inverse_sqrt": all matrices times the root of that, as
            nanochat does. The width of a matrix is its smaller side. Parameters of kind "muon" are left alone: the
            factor for their shape does it.
        base_width: the width at which the learning rate was found.
        kind: told apart besides rate and decay.
        kind_scales: factor on the rate of each kind.

    Returns:
        Groups with `params`, `names` in the same order, `rate_scale`, `weight_decay`, `peak_weight_decay` (the same; the
        former may be scheduled) and `kind`; matrices before the rest.

    Raises:
        ConfigError: a rule matches no parameter; names the nearest ones.
    """
    parameters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in named_parameters:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            parameters[name] = parameter
    _check_rules(rules, list(parameters))
    depths = _depths(list(parameters))
    groups: dict[tuple[bool, str, float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        is_matrix = parameter.ndim >= 2
        rule = next((rule for rule in rules if rule.matches(name)), None)
        group_kind = kind(name, parameter)
        scale = (kind_scales or {}).get(group_kind, 1.0)
        scale *= 1.0 if rule is None else rule.rate_scale
        scale *= layer_rate_decay ** depths[name]
        if group_kind != "muon":
            scale *= _width_scale(name, parameter, width_scaling, base_width)
        decay = weight_decay if is_matrix else 0.0
        if rule is not None and rule.weight_decay is not None:
            decay = rule.weight_decay
        group = groups.setdefault(
            (is_matrix, group_kind, scale, decay),
            {
                "params": [],
                "names": [],
                "rate_scale": scale,
                "weight_decay": decay,
                "peak_weight_decay": decay,
                "kind": group_kind,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    ordered = [group for _, group in sorted(groups.items(), key=lambda item: not item[0][0])]
    covered = Counter(id(parameter) for group in ordered for parameter in group["params"])
    assert covered.keys() == seen
    assert set(covered.values()) <= {1}
    return ordered


def set_groups(
    optimizer: torch.optim.Optimizer, learning_rate: float, settings: Mapping[str, float] | None = None
) -> None:
    """Set the rate of a step, and what else is scheduled, in every group.

    Args:
        optimizer: with groups of `parameter_groups`; plain ones have the rate as it is.
        learning_rate: of this step, before each group's scale.
        settings: `decay_factor` multiplies the decay; any other key is set where a group has it (`momentum`).
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_scale", 1.0)
        for key, value in (settings or {}).items():
            if key == "decay_factor":
                group["weight_decay"] = group["peak_weight_decay"] * value
            elif key in group:
                group[key] = value


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a matrix inside a layer: no embedding, no head, no table of positions."""
    place = _LAYER.match(name)
    if parameter.ndim != 2 or place is None or not name.endswith(".weight"):
        return False
    return not _NOT_HIDDEN.search(name[place.end() :])


def _depths(names: Sequence[str]) -> dict[str, int]:
    """Return how far each parameter is below the top: 0 at the head, L + 1 at the embeddings."""
    layers: dict[str, int] = {}
    for name in names:
        if place := _LAYER.match(name):
            layers[place["stack"]] = max(layers.get(place["stack"], 0), int(place["index"]) + 1)
    depths = {}
    for name in names:
        place = _LAYER.match(name)
        if place:
            depths[name] = layers[place["stack"]] - int(place["index"])
        elif "embedding" in name:
            stack = max((s for s in layers if name.startswith(s)), key=len, default=None)
            # Embeddings beside the stacks (an encoder-decoder's shared ones) lie below the deepest.
            depths[name] = (layers[stack] if stack is not None else max(layers.values(), default=0)) + 1
        else:
            depths[name] = 0
    return depths


def _width_scale(name: str, parameter: nn.Parameter, scaling: WidthScaling, base_width: int) -> float:
    if scaling == "none" or parameter.ndim < 2:
        return 1.0
    ratio = base_width / min(parameter.shape)
    if scaling == "inverse":
        return ratio if is_hidden_matrix(name, parameter) else 1.0
    return float(ratio**0.5)


def _check_rules(rules: Sequence[GroupRule], names: Sequence[str]) -> None:
    for number, rule in enumerate(rules):
        if rule.is_optional or any(rule.matches(name) for name in names):
            continue
        wanted = rule.pattern.removeprefix("re:")
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.3) or list(names[:3])
        raise ConfigError(
            f"optim.rules[{number}].pattern is {rule.pattern!r}, which matches none of {len(names)} parameters.",
            hint=f"names nearby: {', '.join(near)}",
        )
