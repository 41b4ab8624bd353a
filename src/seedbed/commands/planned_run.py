"""Decide what a run is, once: a new one is put together, probed and planned, a resumed one follows what it was started with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seedbed.artifact import (
    current_stage,
    read_sealed_json,
    sweep,
    write_json,
    write_sealed_json,
    write_text,
)
from seedbed.commands.assembly import Setting, assemble
from seedbed.commands.console import Console
from seedbed.commands.deciding import decide
from seedbed.commands.held_out import validation_of
from seedbed.commands.resuming import (
    input_digests,
    requested_sections,
    resolved_recipe,
    resolved_sections,
    resume_request,
)
from seedbed.commands.settling import asked_tokens, settle, settle_as
from seedbed.commands.stages import Prepared
from seedbed.commands.start import OldText, Start, open_old_text, open_start
from seedbed.errors import disk_errors
from seedbed.recipe import Recipe
from seedbed.runtime import RuntimeConfig, describe_machine, prepare_process
from seedbed.training.budget import Plan
from seedbed.training.parallel import first_worker_first, wait_for_all, worker

__all__ = ["MODEL_VERSION", "PlannedRun", "plan_run"]

MODEL_VERSION = 1


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that is about to train.

    Attributes:
        recipe: with its open keys filled in.
        prepared: text, tokenizer and tokens.
        runtime: as this process runs it.
        requested, resolved: sections as they were asked for, and with everything decided.
        inputs: digests of what the run reads.
        start: where weights come from another model.
        old: text of that model.
        setting: model, objectives, rows, state.
        evaluate: scores the model on held-out text.
        baselines: what can be had there without a model.
        plan: steps and micro-batch.
    """

    recipe: Recipe
    prepared: Prepared
    runtime: RuntimeConfig
    requested: Mapping[str, Any]
    resolved: Mapping[str, Any]
    inputs: Mapping[str, str]
    start: Start | None
    old: OldText | None
    setting: Setting
    evaluate: Callable[[], dict[str, float]]
    baselines: Mapping[str, float]
    plan: Plan

    @property
    def folder(self) -> Path:
        """Return where its records are."""
        return self.prepared.run / "pretrain"

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of an optimizer step, over all workers."""
        return self.plan.rows_per_step * self.recipe.data.row_length

    def record(self) -> None:
        """Write down what was decided, where that was not done before."""
        if (self.folder / "resolved.json").exists():
            return
        with disk_errors(self.folder, doing="writing"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sealed_json(self.folder / "plan.json", asdict(self.plan))
            write_json(self.folder / "machine.json", describe_machine(self.runtime))
            if self.start is not None:
                write_json(self.folder / "start.json", self.start.report)
            write_text(self.prepared.run / "recipe.yaml", resolved_recipe(self.recipe, dict(self.resolved)))
            # Last: a run that has it has all of them.
            write_sealed_json(
                self.folder / "resolved.json",
                {"requested": self.requested, "resolved": self.resolved, "inputs": self.inputs},
            )


def plan_run(recipe: Recipe, prepared: Prepared, console: Console, *, replace: bool) -> PlannedRun | None:
    """Put a run together; None where it is finished, and up to date. Of several workers all call it.

    Raises:
        IncompatibleError: the folder holds a run of another recipe, or objective, model and tokenizer do not fit.
    """
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
        return None

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
    return PlannedRun(
        recipe=recipe,
        prepared=prepared,
        runtime=runtime,
        requested=requested,
        resolved=resolved,
        inputs=inputs,
        start=start,
        old=old,
        setting=setting,
        evaluate=evaluate,
        baselines=baselines,
        plan=plan,
    )
