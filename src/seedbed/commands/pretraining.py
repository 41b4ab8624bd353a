"""Assemble a pretraining run: model, objective, rows, plan, hooks, loop, and the model it ends in.

runs/wiki/pretrain/            append-only; belongs to the process that holds the run's lock
    resolved.json              what was asked for, and the same with everything decided; what a resume must equal
    start.json                 where weights came from another model: what was taken, changed, new, left out
    plan.json                  steps and micro-batch, decided once
    machine.json               torch, threads, precision; a resume on another machine warns
    metrics.jsonl timing.jsonl one line a step; the same bits in every run of the recipe, and the times
    checkpoints/
runs/wiki/model/               the model folder it ends in (an artifact), in Hugging Face's form where the family has it
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seedbed.artifact import (
    current_stage,
    digest_of,
    open_verified,
    publish_stage,
    read_json,
    read_sealed_json,
    sweep,
    write_json,
    write_sealed_json,
    write_text,
)
from seedbed.commands.assembly import (
    Setting,
    assemble,
    feed_of,
    rows_of_window,
    run_window,
    samples_of,
)
from seedbed.commands.console import Console
from seedbed.commands.deciding import decide
from seedbed.commands.held_out import validation_of
from seedbed.commands.resuming import (
    input_digests,
    requested_sections,
    resolved_recipe,
    resolved_sections,
    resume_request,
    warn_of_changes,
)
from seedbed.commands.settling import asked_tokens, settle, settle_as
from seedbed.commands.sharing import share_weights
from seedbed.commands.signals import collect_signals as _signals
from seedbed.commands.stages import Prepared
from seedbed.commands.start import Start, open_old_text, open_start
from seedbed.commands.training_progress import ProgressHook, describe_run
from seedbed.errors import disk_errors
from seedbed.models.folder import settle_form, write_model
from seedbed.recipe import Recipe
from seedbed.runtime import describe_machine, prepare_process
from seedbed.training.ahead import made_ahead
from seedbed.training.averaging import WeightAverage, adopt_evaluation_weights
from seedbed.training.budget import Plan
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.compression import PowerSGDMemory
from seedbed.training.continued import ForgettingHook, gained_and_forgotten
from seedbed.training.drift import DriftHook
from seedbed.training.hooks import (
    CheckpointHook,
    Hook,
    MetricsLog,
    TensorBoardHook,
    ValidationHook,
)
from seedbed.training.loop import fit
from seedbed.training.parallel import (
    first_worker_first,
    max_over_workers,
    num_workers,
    wait_for_all,
    worker,
    wrapped,
)
from seedbed.training.rollback import RollbackHook
from seedbed.training.row_record import RowRecord
from seedbed.training.spikes import SpikeGuard
from seedbed.training.state import TrainingState

__all__ = ["MODEL_VERSION", "Interrupted", "pretrain", "run_digest"]

MODEL_VERSION = 1
_logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal, or `stop_after` (signal 0), stopped the run after a finished step; everything is saved."""

    def __init__(self, signal_number: int, window: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.window = window


def pretrain(
    recipe: Recipe, prepared: Prepared, console: Console, *, replace: bool = False, stop_after: int = 0
) -> dict[str, Any]:
    """Train, or go on training, and export; returns the run's summary.

    With `stop_after` it trains up to that step of the run at most, saves, and raises `Interrupted`. Of several workers all call
    it, and the first one writes.

    Raises:
        IncompatibleError: the folder holds a run of another recipe, or objective, model and tokenizer do not fit.
        Interrupted: SIGINT or SIGTERM asked to stop; the step was finished and saved.
        NumericError: three gradients in a row that were not finite, or spikes, and no rollback left.
    """
    with ExitStack() as stack:
        return _pretrain(recipe, prepared, console, stack, replace=replace, stop_after=stop_after)


def _pretrain(
    recipe: Recipe,
    prepared: Prepared,
    console: Console,
    stack: ExitStack,
    *,
    replace: bool,
    stop_after: int,
) -> dict[str, Any]:
    """Do it; what must be let go of afterwards is put on the stack."""
    console.heading("pretrain")
    runtime = recipe.runtime
    if recipe.training.exact and not runtime.threads:
        runtime = runtime.updated(threads=1)
    prepare_process(runtime)
    folder = prepared.run / "pretrain"
    is_first = worker() == 0
    if replace and folder.exists() and is_first:
        shutil.rmtree(folder)
    wait_for_all()
    start = open_start(recipe, prepared.tokenizer)
    old = open_old_text(recipe.start, start, prepared.tokenizer)
    requested = requested_sections(recipe, start)
    inputs = input_digests(recipe, prepared)
    if start is not None:
        inputs["start"] = start.digest
    if old is not None:
        inputs["old tokens"] = old.tokens.digest
    resolved = resume_request(folder, requested, inputs)
    wait_for_all()  # nobody writes here before everybody has looked
    if resolved is not None and current_stage(
        prepared.run, "model", version=MODEL_VERSION, config=resolved, inputs=inputs, replace=replace
    ):
        console.note(f"up to date: {prepared.run / 'model'}")
        if is_first:
            sweep(folder / "checkpoints")
        return _read_summary(prepared.run)

    def put_together(
        recipe: Recipe, start: Start | None
    ) -> tuple[Setting, Callable[[], dict[str, float]], dict[str, float]]:
        setting = assemble(recipe, prepared, start, old)
        with first_worker_first():
            scoring = validation_of(recipe, prepared, setting, replace=replace and is_first)
        return setting, *scoring

    # Plan once; a resumed run follows the plan it was started with.
    if resolved is not None:
        recipe = settle_as(recipe, resolved)
        setting, evaluate, baselines = put_together(recipe, start)
        plan = Plan(**read_sealed_json(folder / "plan.json"))
    else:
        asked, text_tokens = recipe, prepared.store.split("train").num_tokens
        recipe = settle(asked, tokens=asked_tokens(asked), text_tokens=text_tokens)
        setting, evaluate, baselines = put_together(recipe, start)
        plan = decide(recipe, setting, evaluate)
        if plan.forecast_seconds:
            # How long the run is was not known before it was measured, and what follows from that is measured once more.
            tokens = plan.num_windows * plan.rows_per_step * recipe.data.row_length
            longer = settle(asked, tokens=tokens, text_tokens=text_tokens)
            if longer != recipe:
                setting.state.release()
                recipe, start = longer, open_start(asked, prepared.tokenizer)
                setting, evaluate, baselines = put_together(recipe, start)
                plan = decide(recipe, setting, evaluate)
        resolved = resolved_sections(requested_sections(recipe, start), plan)
    stack.callback(setting.state.release)
    samples_path = folder / "samples.json"
    before = samples_of(setting, prepared) if is_first and not samples_path.exists() else None
    if is_first and not (folder / "resolved.json").exists():
        with disk_errors(folder, doing="writing"):
            folder.mkdir(parents=True, exist_ok=True)
            write_sealed_json(folder / "plan.json", asdict(plan))
            write_json(folder / "machine.json", describe_machine(runtime))
            if start is not None:
                write_json(folder / "start.json", start.report)
            write_text(prepared.run / "recipe.yaml", resolved_recipe(recipe, resolved))
            # Last: a run that has it has all of them.
            write_sealed_json(
                folder / "resolved.json", {"requested": requested, "resolved": resolved, "inputs": inputs}
            )
    share_weights(recipe, setting)
    describe_run(console, setting, recipe, plan, baselines)

    if recipe.training.ema_decay:
        setting.state.average = WeightAverage(
            recipe.training.ema_decay,
            start=round(recipe.training.ema_start_fraction * plan.num_windows),
            every=recipe.training.ema_steps,
        )

    if recipe.training.spike_guard:
        setting.state.spikes = SpikeGuard(setting.device)
    if recipe.training.gradient_compression == "powersgd" and num_workers() > 1:
        setting.state.memory = PowerSGDMemory()

    # Resume.
    checkpoints = Checkpoints(
        folder / "checkpoints", inputs=inputs, keep_weights=recipe.training.keep_weights
    )
    newest = checkpoints.newest()
    seconds_before = 0.0
    if newest is not None:
        seconds_before = float(checkpoints.load(setting.state, newest).get("train_seconds", 0.0))
        wait_for_all()
        if is_first:
            checkpoints.drop_after(setting.state.window)
            warn_of_changes(folder, runtime)
        console.note(f"resuming after step {setting.state.window:,} of {plan.num_windows:,}")
    elif is_first:
        checkpoints.drop_after(-1)  # of a run that was killed before its first checkpoint
    if before is not None:
        with disk_errors(samples_path, doing="writing"):
            write_json(samples_path, {"before": before})

    # Train.
    began = time.monotonic()
    progress = ProgressHook(console, plan, recipe.data.row_length)

    def trained() -> dict[str, float]:
        return {"train_seconds": round(seconds_before + time.monotonic() - began, 3)}

    # Without a checkpoint every line will be written again, that of the start (window 0) too.
    log = MetricsLog(folder, window=setting.state.window if newest is not None else -1)
    board = TensorBoardHook(folder / "tensorboard") if recipe.training.tensorboard and is_first else None
    hooks: list[Hook] = [log, progress]
    if board is not None:
        hooks.append(board)

    every = recipe.training.validation_steps or plan.every()
    forgetting = ForgettingHook(
        every=every, last_window=plan.num_windows, max_forgetting=recipe.start.max_forgetting
    )

    def on_validation(window: int, scores: Mapping[str, float]) -> None:
        progress.validation(window, scores)
        forgetting.hear(window, scores)
        if board is not None:
            board.validation(window, scores)

    keeps_best = recipe.training.keep_best and setting.has_best
    validation = ValidationHook(
        evaluate,
        every=every,
        last_window=plan.num_windows,
        log=log,
        checkpoints=checkpoints,
        keeps_best=keeps_best,
        num_averaged=recipe.training.average_checkpoints,
        patience=recipe.training.early_stopping_patience,
        on_result=on_validation,
        is_allowed=lambda scores: forgetting.allows(setting.state, scores),
    )
    if start is not None and newest is None:
        # What the start itself scores: the first best, and what gains and forgetting are measured from.
        for hook in (validation, forgetting):
            hook.act(setting.state)
    feed = feed_of(setting, plan, is_exact=recipe.training.exact)
    rollback = RollbackHook(
        checkpoints,
        log=log,
        every=every,
        max_rollbacks=recipe.training.max_rollbacks,
        rows_of=lambda window: rows_of_window(setting, plan, window),
    )
    if setting.state.shards is None:  # else no two workers hold the same
        hooks.append(DriftHook())  # before anything is saved
    if recipe.training.max_rollbacks:
        if newest is None:
            rollback.act(setting.state)
        hooks.append(rollback)
    hooks += [
        validation,
        *([forgetting] if start is not None else []),
        CheckpointHook(
            checkpoints,
            log=log,
            minutes=recipe.training.checkpoint_minutes,
            steps=recipe.training.checkpoint_steps,
            extra=trained,
        ),
    ]
    record = None
    if recipe.training.record_rows:
        if is_first:
            RowRecord.cut(folder, setting.state.window)
        wait_for_all()
        if (
            worker() % (num_workers() // setting.state.num_data_workers) == 0
        ):  # of those that read the same rows, one
            record = RowRecord(
                folder, worker=setting.state.data_worker, num_workers=setting.state.num_data_workers
            ).add
    with (
        _signals() as received,
        console.bars(),
        _wrapping(setting.state, recipe),
        made_ahead(feed, setting.device) as windows,
    ):
        outcome = fit(
            setting.state,
            lambda state: run_window(setting, state, recipe, windows, record=record),
            num_windows=plan.num_windows,
            tokens_per_window=plan.rows_per_step * recipe.data.row_length,
            learning_rate=lambda window: recipe.optim.rate(window, plan.num_windows, setting.state.history),
            hooks=hooks,
            is_interrupted=lambda: bool(received) or 0 < stop_after <= setting.state.window,
            labels=[entry.label for entry in setting.fed],
            recover=rollback.recover if recipe.training.max_rollbacks else None,
        )
    if outcome.reason == "interrupted":
        raise Interrupted(max_over_workers(received[0] if received else 0), outcome.window)

    # Export the best weights, or means of several, and say what came of it.
    wait_for_all()
    train_seconds = trained()["train_seconds"]
    memory = setting.state.hooks.get("validation", {})
    if recipe.training.average_checkpoints:
        checkpoints.load_mean(setting.state.learner.parts, shards=setting.state.shards)
    elif keeps_best and memory.get("best_window") not in (None, outcome.window):
        checkpoints.load_best(
            setting.state.learner.parts, window=memory["best_window"], shards=setting.state.shards
        )
    else:
        adopt_evaluation_weights(setting.state)
    if setting.state.shards is not None:
        setting.state.optimizer.state.clear()  # room for whole weights: training is over
        setting.state.shards.gather()
    scores = evaluate()
    if not is_first:
        wait_for_all()
        return _read_summary(prepared.run)
    after = samples_of(setting, prepared)
    with disk_errors(samples_path, doing="writing"):
        write_json(samples_path, {"before": _samples_before(samples_path), "after": after})
    tokens = outcome.window * plan.rows_per_step * recipe.data.row_length
    summary = {
        "objective": recipe.objective.name,
        "next": _next_command(setting, recipe),
        "family": recipe.model.name if start is None else start.report["family"],
        "parameters": setting.state.num_parameters,
        "valid_loss": scores["loss"],
        "valid": scores,
        "baselines": baselines,
        "steps": setting.state.step,
        "tokens": tokens,
        "train_seconds": round(train_seconds, 2),
        "tokens_per_second": round(tokens / max(train_seconds, 1e-9), 1),
        "stopped_early": outcome.reason == "stopped",
        "note": plan.note,
        "model": str(prepared.run / "model"),
        "model_form": settle_form(setting.model.config, recipe.training.model_form),
        "machine": describe_machine(runtime),
    }
    if start is not None:
        summary["start"] = start.report
        summary["continued"] = gained_and_forgotten(
            setting.state.hooks["continued"]["before"],
            scores,
            max_forgetting=recipe.start.max_forgetting,
            keeps_validation=old is not None and old.has_validation_of(prepared.tokens),
            stopped_because=_stop_reason(setting.state, recipe) if outcome.reason == "stopped" else "",
        )
    # Before the model: where that is there the run is done, and this is what it says of itself.
    with disk_errors(prepared.run, doing="writing"):
        write_json(prepared.run / "summary.json", summary)
    with publish_stage(
        prepared.run,
        "model",
        version=MODEL_VERSION,
        config=resolved,
        inputs=inputs,
        needed_bytes=sum(p.numel() * p.element_size() for p in setting.model.parameters()),
    ) as draft:
        modules = setting.state.learner.modules_by_name()
        exported = setting.entries[0].objective.exported(setting.model, modules)
        write_model(
            exported,
            draft.path,
            form=settle_form(exported.config, recipe.training.model_form),
            objectives=sorted({entry.objective.config.name for entry in setting.entries}),
        )
        prepared.tokenizer.save(
            draft.path,
            kind=setting.model.config.stack,
            max_length=setting.model.config.max_length,
            token_types=setting.model.config.type_vocab_size > 1,
        )
        draft.counts = {
            "parameters": summary["parameters"],
            "steps": summary["steps"],
            "valid_loss": scores["loss"],
        }
    wait_for_all()
    return summary


@contextmanager
def _wrapping(state: TrainingState, recipe: Recipe) -> Iterator[None]:
    """Let steps go through DDP while the block runs, unless gradients are summed exactly, or weights are shared."""
    if recipe.training.exact or num_workers() == 1 or state.shards is not None:
        yield
        return
    compression = recipe.training.gradient_compression
    with wrapped(state.learner, compression=compression, memory=state.memory) as state.wrapped:
        try:
            yield
        finally:
            state.wrapped = None


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


def _read_summary(run: Path) -> dict[str, Any]:
    """Return the summary of a finished run."""
    return read_json(run / "summary.json")


def run_digest(run: Path) -> str:
    """Return a digest of everything a finished run decided: tokenizer, tokens, weights, loss column."""
    parts = {name: open_verified(run / name).digest for name in ("corpus", "tokenizer", "tokens", "model")}
    return digest_of({**parts, "metrics": (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8")})
