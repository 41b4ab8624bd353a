"""Decide what a recipe leaves to the machine: the rows of a forward pass, and how many steps its budget holds."""

from __future__ import annotations

import time
from collections.abc import Callable

from seedbed.commands.assembly import Setting, assemble, feed_of, run_window
from seedbed.commands.settling import asked_tokens, settle
from seedbed.commands.sharing import fixed_bytes, share_weights
from seedbed.commands.stages import Prepared
from seedbed.commands.start import open_old_text, open_start
from seedbed.recipe import Recipe
from seedbed.runtime import prepare_process
from seedbed.training.budget import Plan, fit_micro_batch, plan_steps, time_steps
from seedbed.training.feed import Entry
from seedbed.training.parallel import agreed
from seedbed.training.state import TrainingState
from seedbed.training.step import MicroBatch, StepResult

__all__ = ["decide", "steps_from_start"]


def steps_from_start(recipe: Recipe, prepared: Prepared, num_steps: int) -> Callable[[float], StepResult]:
    """Return what does the next step of a run of `num_steps` at a given rate, from the initial weights; writes nothing."""
    prepare_process(recipe.runtime)
    recipe = settle(recipe, tokens=asked_tokens(recipe), text_tokens=prepared.store.split("train").num_tokens)
    start = open_start(recipe, prepared.tokenizer)
    setting = assemble(recipe, prepared, start, open_old_text(recipe.start, start, prepared.tokenizer))
    rows = recipe.training.rows_per_step(recipe.data.row_length)
    feed = feed_of(setting, Plan(num_steps, rows, min(_micro_batch_rows(recipe, setting), rows), 0.0, ""))

    def step(rate: float) -> StepResult:
        result = run_window(setting, setting.state, recipe, feed, rate=rate)
        setting.state.window += 1
        return result

    return step


def _micro_batch_rows(recipe: Recipe, setting: Setting) -> int:
    """Return the rows of a forward pass: as asked for, or as many as fit the memory."""

    def fitting(number: int, entry: Entry) -> int:
        def sample(count: int) -> MicroBatch:
            batch, targets = entry.objective.make_batch(*entry.reader.read(0, count), progress=0.0)
            on_device = {term: target.to(setting.device) for term, target in targets.items()}
            return MicroBatch(batch.to(setting.device), on_device, entry=number)

        return fit_micro_batch(
            setting.state.learner,
            sample,
            rows_per_step=recipe.training.rows_per_step(recipe.data.row_length),
            memory_bytes=recipe.runtime.memory_bytes(),
            compute_dtype=setting.compute_dtype,
            group_rows=entry.objective.group_rows,
            num_recomputed_layers=setting.model.config.num_layers * recipe.runtime.activation_checkpointing,
            # 64 rows fill a CPU; a GPU wants more tokens where rows are short.
            max_rows=64 if setting.device.type == "cpu" else max(64, 2**16 // recipe.data.row_length),
            fixed_bytes=fixed_bytes(recipe, setting),
        )

    if recipe.training.micro_batch_rows:
        return recipe.training.micro_batch_rows
    rows = int(agreed(min(fitting(*item) for item in enumerate(setting.fed))))
    if recipe.training.exact:  # up to eight workers can share a step
        rows = min(rows, max(1, recipe.training.rows_per_step(recipe.data.row_length) // 8))
    return rows


def decide(recipe: Recipe, setting: Setting, evaluate: Callable[[], object]) -> Plan:
    """Choose the micro-batch from the memory limit, and the steps from the budget."""
    training = recipe.training
    rows = training.rows_per_step(recipe.data.row_length)
    probe = Plan(1000, rows, min(_micro_batch_rows(recipe, setting), rows), 0.0, "")
    # The memory of a pass was counted with whole weights; its time is measured with shared ones.
    share_weights(recipe, setting)
    feed = feed_of(setting, probe, is_exact=training.exact)

    def step(state: TrainingState, window: int) -> None:
        state.window = 500 + window  # half way: scheduled rates are at their mean
        run_window(setting, state, recipe, feed)

    def measure() -> tuple[float, float]:
        if setting.state.shards is None:
            step_seconds = time_steps(step, setting.state)
        else:
            with setting.state.shards.unchanged(setting.state):
                step_seconds = time_steps(step, setting.state, copies=False)
        began = time.perf_counter()
        evaluate()
        return step_seconds, agreed(time.perf_counter() - began)

    return plan_steps(
        training, row_length=recipe.data.row_length, micro_batch_rows=probe.micro_batch_rows, measure=measure
    )
