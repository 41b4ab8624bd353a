"""Finish a run: take the weights to keep, score them, write the summary and the model folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from seedbed.artifact import publish_stage, read_json, write_json
from seedbed.commands.assembly import Setting, samples_of
from seedbed.commands.planned_run import MODEL_VERSION, PlannedRun
from seedbed.errors import disk_errors
from seedbed.models.folder import settle_form, write_model
from seedbed.recipe import Recipe
from seedbed.runtime import describe_machine
from seedbed.training.averaging import adopt_evaluation_weights
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.continued import gained_and_forgotten
from seedbed.training.loop import Outcome
from seedbed.training.parallel import wait_for_all, worker
from seedbed.training.state import TrainingState

__all__ = ["finish", "read_summary", "samples_path"]

_logger = logging.getLogger(__name__)


def finish(
    run: PlannedRun, checkpoints: Checkpoints, outcome: Outcome, train_seconds: float
) -> dict[str, Any]:
    """Export the best weights, or means of several, and say what came of the run. Of several workers all call it."""
    setting = run.setting
    wait_for_all()
    _take_weights(run, checkpoints, outcome)
    scores = run.evaluate()
    if worker() != 0:
        wait_for_all()
        return read_summary(run.prepared.run)
    path = samples_path(run)
    after = samples_of(setting, run.prepared)
    with disk_errors(path, doing="writing"):
        write_json(path, {"before": _samples_before(path), "after": after})
    summary = _summary(run, outcome, scores, train_seconds)
    # Before the model: where that is there the run is done, and this is what it says of itself.
    with disk_errors(run.prepared.run, doing="writing"):
        write_json(run.prepared.run / "summary.json", summary)
    _export(run, summary)
    wait_for_all()
    return summary


def samples_path(run: PlannedRun) -> Path:
    """Return where what the model writes before and after training is kept."""
    return run.folder / "samples.json"


def read_summary(run: Path) -> dict[str, Any]:
    """Return the summary of a finished run."""
    return read_json(run / "summary.json")


def _take_weights(run: PlannedRun, checkpoints: Checkpoints, outcome: Outcome) -> None:
    """Load what the recipe wants kept: a mean of checkpoints, the best, the average, or the last weights."""
    state = run.setting.state
    keeps_best = run.recipe.training.keep_best and run.setting.has_best
    memory = state.hooks.get("validation", {})
    if run.recipe.training.average_checkpoints:
        checkpoints.load_mean(state.learner.parts, shards=state.shards)
    elif keeps_best and memory.get("best_window") not in (None, outcome.window):
        checkpoints.load_best(state.learner.parts, window=memory["best_window"], shards=state.shards)
    else:
        adopt_evaluation_weights(state)
    if state.shards is not None:
        state.optimizer.state.clear()  # room for whole weights: training is over
        state.shards.gather()


def _summary(
    run: PlannedRun, outcome: Outcome, scores: dict[str, float], train_seconds: float
) -> dict[str, Any]:
    recipe, setting, start = run.recipe, run.setting, run.start
    tokens = outcome.window * run.tokens_per_step
    summary = {
        "objective": recipe.objective.name,
        "next": _next_command(setting, recipe),
        "family": recipe.model.name if start is None else start.report["family"],
        "parameters": setting.state.num_parameters,
        "valid_loss": scores["loss"],
        "valid": scores,
        "baselines": run.baselines,
        "steps": setting.state.step,
        "tokens": tokens,
        "train_seconds": round(train_seconds, 2),
        "tokens_per_second": round(tokens / max(train_seconds, 1e-9), 1),
        "stopped_early": outcome.reason == "stopped",
        "note": run.plan.note,
        "model": str(run.prepared.run / "model"),
        "model_form": settle_form(setting.model.config, recipe.training.model_form),
        "machine": describe_machine(run.runtime),
    }
    if start is not None:
        summary["start"] = start.report
        summary["continued"] = gained_and_forgotten(
            setting.state.hooks["continued"]["before"],
            scores,
            max_forgetting=recipe.start.max_forgetting,
            keeps_validation=run.old is not None and run.old.has_validation_of(run.prepared.tokens),
            stopped_because=_stop_reason(setting.state, recipe) if outcome.reason == "stopped" else "",
        )
    return summary


def _export(run: PlannedRun, summary: dict[str, Any]) -> None:
    """Publish the model folder."""
    setting = run.setting
    with publish_stage(
        run.prepared.run,
        "model",
        version=MODEL_VERSION,
        config=run.resolved,
        inputs=run.inputs,
        needed_bytes=sum(p.numel() * p.element_size() for p in setting.model.parameters()),
    ) as draft:
        modules = setting.state.learner.modules_by_name()
        exported = setting.entries[0].objective.exported(setting.model, modules)
        write_model(
            exported,
            draft.path,
            form=settle_form(exported.config, run.recipe.training.model_form),
            objectives=sorted({entry.objective.config.name for entry in setting.entries}),
        )
        run.prepared.tokenizer.save(
            draft.path,
            kind=setting.model.config.stack,
            max_length=setting.model.config.max_length,
            token_types=setting.model.config.type_vocab_size > 1,
        )
        draft.counts = {
            "parameters": summary["parameters"],
            "steps": summary["steps"],
            "valid_loss": summary["valid_loss"],
        }


def _next_command(setting: Setting, recipe: Recipe) -> str:
    """Return the command that shows what the model learned to do."""
    speaks = {entry.objective.speaks for entry in setting.entries}
    if "generate" in speaks or setting.model.config.stack == "encoder_decoder":
        return f"seedbed generate {recipe.run} TEXT"
    if "fill_mask" in speaks:
        return f"seedbed fill-mask {recipe.run} TEXT"
    if any(entry.objective.config.name == "contrastive" for entry in setting.entries):
        return f"seedbed similarity {recipe.run} FILE"
    return f"seedbed finetune {recipe.run} --help"


def _stop_reason(state: TrainingState, recipe: Recipe) -> str:
    """Say which hook stopped a run."""
    said = str(state.hooks.get("continued", {}).get("stop", ""))
    patience = recipe.training.early_stopping_patience
    return said or f"no better loss in {patience} validations (training.early_stopping_patience)"


def _samples_before(path: Path) -> list[dict[str, Any]]:
    """Return the samples of the untrained model; none, with a warning, where the file is damaged: it decides nothing."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["before"])
    except (ValueError, KeyError, TypeError) as error:
        _logger.warning("%s is damaged (%s); the samples before training are left out", path, error)
        return []
