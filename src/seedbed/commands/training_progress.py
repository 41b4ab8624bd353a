"""Show a run: what is about to happen, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Mapping

from seedbed.commands.assembly import Setting
from seedbed.commands.console import Console, quantity
from seedbed.progress import duration
from seedbed.recipe import Recipe
from seedbed.training.budget import Plan
from seedbed.training.hooks import (
    Hook,
    StepRecord,
)

__all__ = ["ProgressHook", "describe_run"]


def describe_run(
    console: Console, setting: Setting, recipe: Recipe, plan: Plan, baselines: Mapping[str, float]
) -> None:
    """Say what is about to happen."""
    parameters = setting.state.num_parameters
    tokens = plan.num_windows * plan.rows_per_step * recipe.data.row_length
    total = sum(entry.start + entry.end for entry in setting.fed)
    passes = [
        (entry.start + entry.end) / total * plan.num_windows * plan.rows_per_step / entry.reader.num_rows
        for entry in setting.entries
    ]
    epochs = passes[0]
    kind = f"{recipe.model.name} {recipe.model.preset}"
    if setting.start is not None:
        kind = str(setting.start.report["family"])
        _describe_start(console, setting, recipe)
    console.note(
        f"{kind}, {quantity(parameters, 'parameters')};"
        f" {recipe.objective.name}; {recipe.optim.name} at {recipe.optim.peak_rate:g};"
        f" {plan.num_windows:,} steps of {plan.rows_per_step} rows of"
        f" {recipe.data.row_length} tokens ({quantity(tokens, 'tokens')}, {epochs:.1f} passes over the text)"
    )
    if plan.forecast_seconds:
        console.note(f"forecast: {duration(plan.forecast_seconds)}")
    if plan.note:
        console.note(plan.note)
    floors = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    console.note(f"what the corpus alone predicts, nats a target: {floors}")


def _describe_start(console: Console, setting: Setting, recipe: Recipe) -> None:
    """Say what was taken from the start, and what from the old text."""
    assert setting.start is not None
    report = setting.start.report
    parts = [f"from {report['folder']}: {', '.join(report['taken'])}"]
    for key in ("changed", "new"):
        if report[key]:
            parts.append(f"{key}: {', '.join(report[key])}")
    if report["left_out"]:
        parts.append("left out: " + ", ".join(f"{k} ({why})" for k, why in report["left_out"].items()))
    if report["optimizer"] == "continue":
        parts.append("with the weights and moments of its last state")
    console.note("; ".join(parts))
    if setting.old is not None:
        share = recipe.start.replay.share
        replayed = f"{share:.0%} of the rows" if share else "none of the rows"
        console.note(
            f"old text: {setting.old.run}, {replayed}; its validation targets are scored as old.loss"
        )


class ProgressHook(Hook):
    """Show loss, rate and remaining time."""

    name = "progress"

    def __init__(self, console: Console, plan: Plan, row_length: int) -> None:
        self.console = console
        self.tokens = plan.rows_per_step * row_length
        self.total = plan.num_windows * self.tokens
        self._first: tuple[float, int] | None = None
        self._loss: float | None = None
        self._valid: float | None = None

    def on_step(self, record: StepRecord, seconds: float) -> None:
        """Move the bar."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now - seconds, record.tokens - self.tokens)
        self._loss = record.loss if self._loss is None else 0.95 * self._loss + 0.05 * record.loss
        rate = (record.tokens - self._first[1]) / max(now - self._first[0], 1e-6)
        valid = "" if self._valid is None else f"  valid {self._valid:.3f}"
        self.console.progress(
            "training",
            done=record.tokens,
            total=self.total,
            unit="tokens",
            detail=f"{rate:,.0f} tok/s  loss {self._loss:.3f}{valid}",
        )

    def validation(self, window: int, scores: Mapping[str, float]) -> None:
        """Remember the last validation loss."""
        self._valid = scores["loss"]
