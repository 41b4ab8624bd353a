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

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from seedbed.artifact import digest_of, open_verified, write_json
from seedbed.commands.assembly import feed_of, rows_of_window, run_window, samples_of
from seedbed.commands.console import Console
from seedbed.commands.finishing import finish, read_summary, samples_path
from seedbed.commands.planned_run import PlannedRun, plan_run
from seedbed.commands.resuming import warn_of_changes
from seedbed.commands.sharing import share_weights
from seedbed.commands.signals import collect_signals as _signals
from seedbed.commands.stages import Prepared
from seedbed.commands.training_progress import ProgressHook, describe_run
from seedbed.errors import disk_errors
from seedbed.recipe import Recipe
from seedbed.training.ahead import made_ahead
from seedbed.training.averaging import WeightAverage
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.compression import PowerSGDMemory
from seedbed.training.continued import ForgettingHook
from seedbed.training.drift import DriftHook
from seedbed.training.hooks import (
    CheckpointHook,
    Hook,
    MetricsLog,
    TensorBoardHook,
    ValidationHook,
)
from seedbed.training.loop import Outcome, fit
from seedbed.training.parallel import max_over_workers, num_workers, wait_for_all, worker, wrapped
from seedbed.training.rollback import RollbackHook
from seedbed.training.row_record import RowRecord
from seedbed.training.spikes import SpikeGuard
from seedbed.training.state import TrainingState

__all__ = ["Interrupted", "pretrain", "run_digest"]


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
    run = plan_run(recipe, prepared, console, replace=replace)
    if run is None:
        return read_summary(prepared.run)
    stack.callback(run.setting.state.release)
    is_first = worker() == 0
    path = samples_path(run)
    before = samples_of(run.setting, prepared) if is_first and not path.exists() else None
    if is_first:
        run.record()
    share_weights(run.recipe, run.setting)
    describe_run(console, run.setting, run.recipe, run.plan, run.baselines)
    _add_companions(run)
    checkpoints = Checkpoints(
        run.folder / "checkpoints", inputs=dict(run.inputs), keep_weights=run.recipe.training.keep_weights
    )
    seconds_before = _resume(run, checkpoints, console)
    if before is not None:
        with disk_errors(path, doing="writing"):
            write_json(path, {"before": before})
    began = time.monotonic()

    def seconds() -> float:
        return round((seconds_before or 0.0) + time.monotonic() - began, 3)

    hooks, rollback = _hooks(run, checkpoints, console, is_new=seconds_before is None, seconds=seconds)
    outcome = _train(run, console, hooks, rollback, stop_after)
    return finish(run, checkpoints, outcome, seconds())


def _add_companions(run: PlannedRun) -> None:
    """Give the state what goes along with its weights: their average, the guard of spikes, what was not sent yet."""
    training, state = run.recipe.training, run.setting.state
    if training.ema_decay:
        state.average = WeightAverage(
            training.ema_decay,
            start=round(training.ema_start_fraction * run.plan.num_windows),
            every=training.ema_steps,
        )
    if training.spike_guard:
        state.spikes = SpikeGuard(run.setting.device)
    if training.gradient_compression == "powersgd" and num_workers() > 1:
        state.memory = PowerSGDMemory()


def _resume(run: PlannedRun, checkpoints: Checkpoints, console: Console) -> float | None:
    """Load the newest checkpoint; return the seconds trained before it, or None where there is none."""
    newest = checkpoints.newest()
    is_first = worker() == 0
    if newest is None:
        if is_first:
            checkpoints.drop_after(-1)  # of a run that was killed before its first checkpoint
        return None
    state = run.setting.state
    seconds = float(checkpoints.load(state, newest).get("train_seconds", 0.0))
    wait_for_all()
    if is_first:
        checkpoints.drop_after(state.window)
        warn_of_changes(run.folder, run.runtime)
    console.note(f"resuming after step {state.window:,} of {run.plan.num_windows:,}")
    return seconds


def _hooks(
    run: PlannedRun,
    checkpoints: Checkpoints,
    console: Console,
    *,
    is_new: bool,
    seconds: Callable[[], float],
) -> tuple[list[Hook], RollbackHook]:
    """Return what happens after each step, in order, and the hook that can go back.

    Args:
        run: as planned.
        checkpoints: of it.
        console: told of progress.
        is_new: nothing was trained yet.
        seconds: trained so far, over all its processes.
    """
    recipe, setting, plan = run.recipe, run.setting, run.plan
    progress = ProgressHook(console, plan, recipe.data.row_length)
    # Without a checkpoint every line will be written again, that of the start (window 0) too.
    log = MetricsLog(run.folder, window=-1 if is_new else setting.state.window)
    hooks: list[Hook] = [log, progress]
    board = None
    if recipe.training.tensorboard and worker() == 0:
        board = TensorBoardHook(run.folder / "tensorboard")
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

    validation = ValidationHook(
        run.evaluate,
        every=every,
        last_window=plan.num_windows,
        log=log,
        checkpoints=checkpoints,
        keeps_best=recipe.training.keep_best and setting.has_best,
        num_averaged=recipe.training.average_checkpoints,
        patience=recipe.training.early_stopping_patience,
        on_result=on_validation,
        is_allowed=lambda scores: forgetting.allows(setting.state, scores),
    )
    if run.start is not None and is_new:
        # What the start itself scores: the first best, and what gains and forgetting are measured from.
        for hook in (validation, forgetting):
            hook.act(setting.state)
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
        if is_new:
            rollback.act(setting.state)
        hooks.append(rollback)
    hooks += [
        validation,
        *([forgetting] if run.start is not None else []),
        CheckpointHook(
            checkpoints,
            log=log,
            minutes=recipe.training.checkpoint_minutes,
            steps=recipe.training.checkpoint_steps,
            extra=lambda: {"train_seconds": seconds()},
        ),
    ]
    return hooks, rollback


def _train(
    run: PlannedRun, console: Console, hooks: Sequence[Hook], rollback: RollbackHook, stop_after: int
) -> Outcome:
    """Train to the end of the plan, or until a hook stops it.

    Raises:
        Interrupted: by a signal, or `stop_after`.
    """
    recipe, setting, plan = run.recipe, run.setting, run.plan
    feed = feed_of(setting, plan, is_exact=recipe.training.exact)
    record = _row_record(run) if recipe.training.record_rows else None
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
            tokens_per_window=run.tokens_per_step,
            learning_rate=lambda window: recipe.optim.rate(window, plan.num_windows, setting.state.history),
            hooks=hooks,
            is_interrupted=lambda: bool(received) or 0 < stop_after <= setting.state.window,
            labels=[entry.label for entry in setting.fed],
            recover=rollback.recover if recipe.training.max_rollbacks else None,
        )
    if outcome.reason == "interrupted":
        raise Interrupted(max_over_workers(received[0] if received else 0), outcome.window)
    return outcome


def _row_record(run: PlannedRun) -> Callable[..., None] | None:
    """Return what writes down the rows of each step; of workers that read the same rows, one does."""
    state = run.setting.state
    if worker() == 0:
        RowRecord.cut(run.folder, state.window)
    wait_for_all()
    if worker() % (num_workers() // state.num_data_workers):
        return None
    return RowRecord(run.folder, worker=state.data_worker, num_workers=state.num_data_workers).add


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


def run_digest(run: Path) -> str:
    """Return a digest of everything a finished run decided: tokenizer, tokens, weights, loss column."""
    parts = {name: open_verified(run / name).digest for name in ("corpus", "tokenizer", "tokens", "model")}
    return digest_of({**parts, "metrics": (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8")})
