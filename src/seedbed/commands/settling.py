"""Fill in what a recipe leaves to the length of its run: the tokens of a step, its rate, and how strongly to regularise.

A run that races through fresh text and one that reads a short text many times want other settings, and how many passes a
budget buys is known only when the text is prepared and the machine was measured. Keys of a recipe that are null are filled
in then; the resolved recipe has the values. What they rest on is measured in docs/recipes.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seedbed.models.presets import PRESETS
from seedbed.optim.base import USUAL_DECAY, usual_rate
from seedbed.recipe import Recipe
from seedbed.training.config import USUAL_BATCH_TOKENS

__all__ = ["MANY_PASSES", "asked_tokens", "batch_for", "filled_in", "settle", "settle_as"]

MANY_PASSES = 4.0
"""More passes than these over the text are many: up to four are nearly as good as fresh text (2305.16264)."""

_DROPOUT_PASSES = 20.0
"""More passes than these want dropout; at ten it cost a masked model 0.07 nats and more."""

_MANY_DECAY, _MANY_DROPOUT = 0.3, 0.1

_OPEN = {
    "training": ("batch_tokens",),
    "optim": ("learning_rate", "weight_decay"),
    "model": ("hidden_dropout", "many_passes"),
}
"""Keys that may be left open, by section."""

_BATCH, _BATCH_AT, _BATCH_EXPONENT = 2048, 8e6, 0.38
"""2,048 tokens were best of four sizes at 4 M tokens and of three at 12 M; the growth from there on is nanochat's (0.383)."""

_FEWEST, _MOST = 1024, 2**19


def asked_tokens(recipe: Recipe) -> float | None:
    """Return the tokens a recipe asks to train on; None where its budget is in minutes."""
    training = recipe.training
    if training.budget_steps is not None:
        return float(training.budget_steps * (training.batch_tokens or USUAL_BATCH_TOKENS))
    return None if training.budget_tokens is None else float(training.budget_tokens)


def batch_for(tokens: float) -> int:
    """Return the tokens of a step for a run of so many: the power of two nearest to 2,048 (tokens / 8 M)^0.38."""
    power = round(math.log2(_BATCH * (max(1.0, tokens) / _BATCH_AT) ** _BATCH_EXPONENT))
    return min(_MOST, max(_FEWEST, 1 << power))


def settle(recipe: Recipe, *, tokens: float | None, text_tokens: int | None) -> Recipe:
    """Return the recipe with its open keys filled in.

    Args:
        recipe: as it was asked for.
        tokens: the run will read; None: not known yet, as few as one pass.
        text_tokens: of the training split; None: not known, and what follows from the passes over it stays open.
    """
    batch = recipe.training.batch_tokens
    if batch is None:
        has_length = tokens is not None and recipe.training.budget_steps is None
        batch = batch_for(tokens or 0.0) if has_length else USUAL_BATCH_TOKENS
    values: dict[str, dict[str, Any]] = {
        "training": {"batch_tokens": batch},
        "optim": {"learning_rate": usual_rate(batch, *_width(recipe))},
    }
    if text_tokens is not None:
        passes = (tokens or 0.0) / max(1, text_tokens)
        is_many = passes > MANY_PASSES
        values["optim"]["weight_decay"] = _MANY_DECAY if is_many else USUAL_DECAY
        values["model"] = {
            "hidden_dropout": _MANY_DROPOUT if passes > _DROPOUT_PASSES else 0.0,
            "many_passes": is_many,
        }
    return _filled(recipe, values)


def _width(recipe: Recipe) -> tuple[int, ...]:
    """Return the width the rate should fit; nothing where the model is another's, or rates are scaled by width already."""
    if recipe.start.path is not None or recipe.optim.width_scaling != "none":
        return ()
    return (recipe.model.hidden_size or PRESETS[recipe.model.preset].hidden_size,)


def settle_as(recipe: Recipe, resolved: Mapping[str, Any]) -> Recipe:
    """Return the recipe with its open keys as a run's resolved sections have them."""
    return _filled(recipe, resolved)


def filled_in(requested: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was open among the sections of a run, and the value it was filled in with, by dotted key."""
    return {
        f"{section}.{key}": resolved[section][key]
        for section, keys in _OPEN.items()
        for key in keys
        if key in resolved.get(section, {}) and requested[section].get(key) is None
    }


def _filled(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a copy whose open keys have the values given for them."""
    changed = {}
    for name, keys in _OPEN.items():
        if name == "model" and recipe.start.path is not None:
            continue  # a model that exists describes itself
        section, given = getattr(recipe, name), values.get(name, {})
        own = {key: given[key] for key in keys if getattr(section, key, 0) is None and key in given}
        if own:
            changed[name] = section.updated(**own)
    return recipe.updated(**changed) if changed else recipe
