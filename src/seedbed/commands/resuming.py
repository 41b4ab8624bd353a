"""Say what a run was asked for and what was decided, and refuse to go on with anything else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace as _replaced
from pathlib import Path
from typing import Any

from seedbed.artifact import file_digest, read_sealed_json
from seedbed.commands.stages import Prepared
from seedbed.commands.start import Start
from seedbed.config import commented_yaml, validate
from seedbed.errors import DataError, IncompatibleError
from seedbed.objectives.combination import entries_of
from seedbed.recipe import Recipe
from seedbed.runtime import RuntimeConfig, describe_machine
from seedbed.training.budget import Plan
from seedbed.training.config import TrainingConfig

__all__ = [
    "FREE_KEYS",
    "requested_sections",
    "resolved_recipe",
    "resolved_sections",
    "resume_request",
    "warn_of_changes",
]

FREE_KEYS = ("checkpoint_minutes", "checkpoint_steps", "keep_weights", "record_rows", "tensorboard")
"""Keys of `training` that change no result, so that a resume may change them."""

_logger = logging.getLogger(__name__)


def requested_sections(recipe: Recipe, start: Start | None) -> dict[str, Any]:
    """Return the sections a model depends on, without the keys that change nothing.

    Where there is a start, its content stands in them, and its family for the model's description.
    """
    values = recipe.model_dump(mode="json", include={"data", "model", "objective", "optim", "training"})
    for key in FREE_KEYS:
        values["training"].pop(key)
    for key in (
        "exact",
        "gradient_compression",
        "max_rollbacks",
        "spike_guard",
    ):  # runs of before know nothing of them
        if values["training"][key] == TrainingConfig.model_fields[key].default:
            values["training"].pop(key)
    if not recipe.regularisation.is_off:
        values["regularisation"] = recipe.regularisation.model_dump(mode="json")
    if start is not None:
        values["model"] = start.model_section
        values["start"] = recipe.start.model_dump(mode="json") | {"digest": start.digest}
    return values


def resolved_sections(requested: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the request with the plan's decisions in place of budgets."""
    training = {
        **requested["training"],
        "budget_minutes": None,
        "budget_tokens": None,
        "budget_steps": plan.num_windows,
        "max_minutes": None,
        "micro_batch_rows": plan.micro_batch_rows,
    }
    if plan.every() != _replaced(plan, validation_steps=0).every():  # else the default repeats it
        training["validation_steps"] = plan.every()
    return {**requested, "training": training}


def resolved_recipe(recipe: Recipe, resolved: Mapping[str, Any]) -> str:
    """Return the whole recipe with everything decided, commented; running it anywhere repeats the run bit for bit."""
    data = recipe.model_dump(mode="json")
    training = {**data["training"], **resolved["training"]}
    whole = validate(Recipe, {**data, **resolved, "training": training}, place="the resolved recipe")
    heading = (
        "# The recipe of this run with every choice made. Running it in another folder repeats the run.\n"
    )
    if recipe.start.path is None:
        return heading + commented_yaml(whole)
    # The start brings the description: only what was chosen beside it may stand here.
    sections = [name for name in Recipe.model_fields if name != "model"]
    return heading + commented_yaml(whole, only=sections) + f"model: {json.dumps(resolved['model'])}\n"


def input_digests(recipe: Recipe, prepared: Prepared) -> dict[str, str]:
    """Return content hashes of what a run learns from: tokens, tokenizer, and files its objectives read.

    Raises:
        DataError: such a file does not exist.
    """
    inputs = {"tokens": prepared.tokens.digest, "tokenizer": prepared.tokenizer.digest}
    for entry in entries_of(recipe.objective):
        for name in entry.objective.files():
            path = Path(name).expanduser()
            if not path.is_file():
                raise DataError(f"{name} does not exist.", hint="objective names a file of yours")
            inputs[name] = file_digest(path)
    return inputs


def resume_request(
    folder: Path, requested: dict[str, Any], inputs: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the resolved sections of the run in the folder, or None when there is none.

    Args:
        folder: of the pretraining.
        requested: sections of the recipe.
        inputs: content hashes of what it learns from.

    Raises:
        IntegrityError: what the folder says of its run was changed.
        IncompatibleError: the run was started from other sections, or other content; names what differs.
    """
    path = folder / "resolved.json"
    if not path.exists():
        return None
    saved = read_sealed_json(path)
    if requested in (saved["requested"], saved["resolved"]):
        known = saved.get("inputs", inputs)  # runs of before kept none
        if changed := [name for name in sorted({*known, *inputs}) if known.get(name) != inputs.get(name)]:
            raise IncompatibleError(
                f"{folder} was trained on other content: {', '.join(changed)} changed since.",
                hint="put it back, use another run folder (run=...), or --replace to start over",
            )
        return dict(saved["resolved"])
    changes = list(_differences("", saved["requested"], requested))
    raise IncompatibleError(
        f"{folder} was started from another recipe: {'; '.join(changes[:6])}.",
        hint="use another run folder (run=...), or --replace to start over",
    )


def _differences(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs, key by key; of a section of another kind its name alone, since all else follows from that."""
    keys = sorted({*old, *new})
    if "name" in old and "name" in new and old["name"] != new["name"]:
        keys = ["name"]
    for key in keys:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(f"{prefix}{key}.", before, after)
        elif before != after:
            yield f"{prefix}{key} was {json.dumps(before)}, is {json.dumps(after)}"


def warn_of_changes(folder: Path, runtime: RuntimeConfig) -> None:
    """Warn when the machine differs from the one the run was started on: bits may then differ."""
    try:
        before = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        changes = list(_differences("", before, describe_machine(runtime)))
    except (ValueError, AttributeError, TypeError) as error:  # it decides nothing
        changes = [f"{folder / 'machine.json'} is damaged ({error})"]
    if changes:
        _logger.warning(
            "the machine differs from the run's first one, bits may differ: %s", "; ".join(changes)
        )
