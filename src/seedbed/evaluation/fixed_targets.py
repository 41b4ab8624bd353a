"""Keep an evaluation as an artifact: the very rows, masks and baselines that every score of a run refers to.

Targets are pure functions of the text, so they could be drawn again; stored, they are also proof against changes of
this program. Validation while training and `seedbed evaluate` on a run's own validation split both read this artifact.

    validation/batches.safetensors   all tensors of all batches, named <batch>/<field> and <batch>/<term>/<field>
    validation/batches.json          the plain fields, and the numbers of rows
    validation/baselines.json        what can be had without a model at these targets, by name
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from seedbed.artifact import Artifact, current_stage, open_verified, publish_stage, write_json
from seedbed.batch import Batch, Targets
from seedbed.data.views import TokenStream, View
from seedbed.errors import IntegrityError
from seedbed.evaluation.baselines import term_baselines
from seedbed.evaluation.intrinsic import EVALUATION_SEED, EvaluationSet, build_evaluation_set
from seedbed.objectives.base import Objective
from seedbed.tensors import load_tensors, save_tensors

__all__ = ["STAGE", "VALIDATION_VERSION", "build_validation", "load_validation", "save_validation"]

VALIDATION_VERSION = 3
STAGE = "validation"


def build_validation(
    run: Path,
    tokens: Artifact,
    objective: Objective,
    view: View,
    train: TokenStream,
    *,
    max_rows: int,
    replace: bool = False,
    stage: str = STAGE,
) -> tuple[EvaluationSet, dict[str, float]]:
    """Return a run's stored evaluation and its baselines; make them first if the run has none that is current.

    Args:
        run: the run folder.
        tokens: the artifact the rows come from; part of the key.
        objective: the objective that trains; its `for_evaluation` variant makes the targets.
        view: rows of the validation split.
        train: the training split, for the baselines' counts.
        max_rows: rows to take at most.
        replace: make the stage anew where it was made differently.
        stage: folder in the run; further objectives of a mixture have their own.

    Raises:
        DataError: there is nothing to predict.
        IncompatibleError: the run's evaluation was made differently, and `replace` is false.
        IntegrityError: it is damaged.
    """
    fixed = objective.for_evaluation()
    key: dict[str, Any] = {
        "version": VALIDATION_VERSION,
        "config": {
            "objective": fixed.config.model_dump(mode="json"),
            "view": fixed.view,
            "row_length": fixed.row_length,
            "is_segmented": fixed.is_segmented,
            "max_rows": max_rows,
            "seed": EVALUATION_SEED,
        },
        "inputs": {"tokens": tokens.digest},
    }
    artifact = current_stage(run, stage, replace=replace, **key)
    if artifact is None:
        made = build_evaluation_set(objective, view, max_rows=max_rows)
        baselines = term_baselines(objective, made, train)
        with publish_stage(run, stage, **key) as draft:
            save_validation(draft.path, made, baselines)
            draft.counts = {
                "rows": made.num_rows,
                "rows_of_split": made.total_rows,
                "targets": sum(
                    target.at.shape[0] for _, targets in made.batches for target in targets.values()
                ),
            }
        artifact = open_verified(run / stage, stage=stage, version=VALIDATION_VERSION)
    return load_validation(artifact)


def save_validation(folder: Path, evaluation_set: EvaluationSet, baselines: Mapping[str, float]) -> None:
    """Write an evaluation and its baselines into a folder."""
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    for index, (batch, targets) in enumerate(evaluation_set.batches):
        described.append(
            {
                "batch": _put(batch, f"{index:05d}", tensors),
                "targets": {
                    term: _put(target, f"{index:05d}/{term}", tensors) for term, target in targets.items()
                },
            }
        )
    save_tensors(tensors, folder / "batches.safetensors")
    write_json(
        folder / "batches.json",
        {
            "num_rows": evaluation_set.num_rows,
            "total_rows": evaluation_set.total_rows,
            "batches": described,
        },
    )
    write_json(folder / "baselines.json", dict(baselines))


def load_validation(artifact: Artifact) -> tuple[EvaluationSet, dict[str, float]]:
    """Read an evaluation and its baselines.

    Raises:
        IntegrityError: a file is missing or was changed.
    """
    tensors = load_tensors(artifact.file("batches.safetensors"))
    described = json.loads(artifact.file("batches.json").read_text(encoding="utf-8"))
    batches = [
        (
            Batch(**_take(item["batch"], f"{index:05d}", tensors)),
            {
                term: Targets(**_take(plain, f"{index:05d}/{term}", tensors))
                for term, plain in item["targets"].items()
            },
        )
        for index, item in enumerate(described["batches"])
    ]
    if tensors:
        raise IntegrityError(
            f"{artifact.path} holds tensors that batches.json does not name: {sorted(tensors)[:3]}.",
            hint="rerun the stage",
        )
    baselines: dict[str, float] = json.loads(artifact.file("baselines.json").read_text(encoding="utf-8"))
    return EvaluationSet(batches, described["num_rows"], described["total_rows"]), baselines


def _put(value: Batch | Targets, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Add a value's tensors under `prefix`; return its plain fields, with the names of its tensors."""
    plain: dict[str, Any] = {"tensors": []}
    for field in fields(value):
        content = getattr(value, field.name)
        if isinstance(content, Tensor):
            tensors[f"{prefix}/{field.name}"] = content.contiguous().clone()  # no two may share memory
            plain["tensors"].append(field.name)
        else:
            plain[field.name] = content
    return plain


def _take(plain: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the fields of a value, its tensors removed from `tensors`."""
    found = {name: content for name, content in plain.items() if name != "tensors"}
    return found | {name: tensors.pop(f"{prefix}/{name}") for name in plain["tensors"]}
