"""Every key of a recipe, changed behind a run that has begun: refused with its name, or declared to change nothing."""

from __future__ import annotations

import logging
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from seedbed.commands import pretraining
from seedbed.commands.console import Console
from seedbed.commands.resuming import FREE_KEYS
from seedbed.commands.stages import prepare
from seedbed.config import validate
from seedbed.errors import ConfigError, SeedbedError
from seedbed.recipe import Recipe
from tiny_runs import write_sentences

FREE = {f"training.{key}" for key in FREE_KEYS}
FREE |= {
    "runtime.memory_gib",
    "runtime.activation_checkpointing",
    "runtime.attention",
    "runtime.sharding",
}
"""Change no result, so a resume may change them."""
WARNS = {"runtime.threads", "runtime.precision", "runtime.loss_logits_mib"}
"""Change rounding at most: a resume goes on, and says so."""
ELSEWHERE = {
    "run": "another folder is another run",
    "runtime.device": "there is one here",
    "runtime.compile": "a step would compile for a minute; machine.json names it (test_runtime.py), so it warns",
    "runtime.tensor_parallel": "needs a model it cuts (test_workers.py)",
    "start": "all of it needs a start, whose digest is a key (test_start.py)",
    "training.budget_minutes": "one budget is given: training.budget_steps",
    "training.budget_tokens": "the same",
    "objective.similar_share": "needs similar words",
    "tokenizer.path": "needs a tokenizer (test_train.py)",
    "corpus.append_to": "needs a corpus (test_earlier.py)",
    "corpus.validation_inputs": "needs other text",
    "objective.lexicon": "needs a file; its digest is a key (test_lexicon.py)",
    "objective.lexicon_digest": "is made from the file",
    "objective.similar_words": "needs a file; its digest is a key",
    "objective.similar_words_digest": "is made from the file",
    "corpus.inputs": "other text is refused by its content (test_pipeline.py)",
}

OTHERS: dict[str, list[Any]] = {
    "model.name": ["bert"],
    "objective.name": ["masked_diffusion"],
    "optim.name": ["adam"],
    "optim.rules": [[{"pattern": "*", "rate_scale": 0.5}]],
    "optim.schedule.name": ["cosine"],
    "regularisation.adversarial.name": ["fgm"],
}
"""Values that cannot be guessed from the type."""


def is_elsewhere(key: str) -> bool:
    return key in ELSEWHERE or key.split(".")[0] in ELSEWHERE


def recipe_data(corpus, run) -> dict[str, Any]:
    return {
        "run": str(run),
        "corpus": {"inputs": [str(corpus)], "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 300, "num_reserved": 4},
        "data": {"row_length": 16, "reorder_documents": False},
        "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 64, "hidden_dropout": 0.1},
        "training": {
            "budget_steps": 4000,
            "batch_tokens": 96,
            "micro_batch_rows": 3,
            "validation_steps": 500,
            "validation_rows": 8,
        },
        "runtime": {"threads": 1},
    }


def literals(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
    else:
        for argument in typing.get_args(annotation):
            yield from literals(argument)


def leaves(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield the keys of a recipe with their value and what else might stand there."""
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{key}.")
            continue
        others: list[Any] = [other for other in literals(field.annotation) if other != value]
        if isinstance(value, bool):
            others += [not value]
        elif isinstance(value, int | float):
            others += [value + 1, 2 * value, value / 2 + 0.01, value + 0.1, value - 1]
        elif value is None:
            others += [1, 0.1, 8, "x", [], {}]
        elif isinstance(value, str):
            others += ["x"]
        elif isinstance(value, list | tuple):
            others += [["x"], [1.0], [0.5, 0.3, 0.2], [{"pattern": "x", "scale": 0.5}]]
        yield key, value, others


def changed(data: dict[str, Any], key: str, value: Any) -> Recipe | None:
    """Return the recipe with one key changed, or None where the value does not fit."""
    *sections, name = key.split(".")
    copy = {**data}
    inner = copy
    for section in sections:
        inner[section] = {**inner.get(section, {})}
        inner = inner[section]
    inner[name] = value
    try:
        recipe = validate(Recipe, copy, place="test")
    except ConfigError:
        return None
    return None if recipe == validate(Recipe, data, place="test") else recipe


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of which two steps are done."""
    folder = tmp_path_factory.mktemp("run")
    data = recipe_data(write_sentences(folder / "corpus"), folder / "run")
    recipe, console = validate(Recipe, data, place="test"), Console(as_json=True)
    with pytest.raises(pretraining.Interrupted):
        pretraining.pretrain(recipe, prepare(recipe, console), console, stop_after=2)
    return data


KEYS = [key for key, _, _ in leaves(validate(Recipe, recipe_data("x", "y"), place="test"))]


def test_what_is_declared_exists():
    assert set(KEYS) >= FREE | WARNS | set(OTHERS) | (set(ELSEWHERE) - {"start"})


@pytest.mark.parametrize("key", [key for key in KEYS if not is_elsewhere(key)])
def test_a_changed_key_is_refused_or_declared(begun, key, caplog):
    values = {k: (v, others) for k, v, others in leaves(validate(Recipe, begun, place="test"))}
    others = [*OTHERS.get(key, []), *values[key][1]]
    recipe = next((r for other in others if (r := changed(begun, key, other))), None)
    assert recipe is not None, f"no other value found for {key}: declare it in ELSEWHERE with a reason"
    console = Console(as_json=True)
    refused: SeedbedError | None = None
    with caplog.at_level(logging.WARNING):
        try:
            pretraining.pretrain(recipe, prepare(recipe, console), console, stop_after=1)
        except pretraining.Interrupted:
            pass
        except SeedbedError as error:
            refused = error
    if key in FREE | WARNS:
        assert refused is None
        assert ("bits may differ" in caplog.text) == (key in WARNS)
        return
    assert refused is not None, f"{key} changes a run that has begun, and nothing says so"
    assert refused.exit_code == 9, refused
    assert key.split(".")[-1] in refused.message, "the message names the key"
    assert refused.hint
