"""Try learning rates: train from the initial weights while the rate rises a little each step, and draw the losses.

The range test of Smith (arXiv 1506.01186, 1803.09820), with an exponential sweep. Losses are smoothed by an exponential
mean without its bias. The sweep ends when the smoothed loss is a twentieth above where it began, or is not finite. What is
suggested is a tenth of the rate at the lowest smoothed loss (fastai's rule "minimum / 10"): the lowest point is already
where steps begin to do harm, and a peak rate has to serve for longer than one step. The steepest descent is shown beside it.

Nothing but `<run>/find-rate/` is written: the run is neither started nor changed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seedbed.commands.console import Console, add_recipe_arguments, read_recipe

EXAMPLES = """examples:
  seedbed find-rate recipe.yaml
  seedbed find-rate recipe.yaml optim.name=muon --steps 200 --high 0.5

Then: seedbed pretrain recipe.yaml optim.learning_rate=..."""

_MIN_STEPS = 10
"""Steps before the sweep may end: a mean of fewer losses says nothing."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Hold what a sweep found.

    Attributes:
        rates: of the steps done.
        losses: of each step, before its update, at the rate of the step before.
        smoothed: the same, smoothed.
        lowest: rate at the lowest smoothed loss.
        steepest: rate at which the smoothed loss fell fastest over the rate's logarithm.
        suggested: a tenth of `lowest`.
        has_diverged: the sweep ended early.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    lowest: float
    steepest: float
    suggested: float
    has_diverged: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_recipe_arguments(parser)
    parser.add_argument("--steps", type=int, default=100, help="steps of the sweep (default 100)")
    parser.add_argument("--low", type=float, default=1e-5, help="first rate (default 1e-5)")
    parser.add_argument("--high", type=float, default=1.0, help="last rate (default 1)")
    parser.add_argument(
        "--smoothing", type=float, default=0.9, help="share of the mean kept each step (default 0.9)"
    )


def run(options: argparse.Namespace) -> int:
    """Prepare the stages before training, sweep, draw."""
    from seedbed.artifact import write_json
    from seedbed.commands.deciding import steps_from_start
    from seedbed.commands.stages import prepare
    from seedbed.errors import disk_errors
    from seedbed.lock import owned

    recipe, console = read_recipe(options), Console(as_json=options.json)
    rates = rates_between(options.low, options.high, options.steps)
    folder = recipe.run_folder() / "find-rate"
    with owned(recipe.run_folder()):
        prepared = prepare(recipe, console, strict=options.strict, replace=options.replace)
        console.heading("find-rate")
        step = steps_from_start(recipe, prepared, options.steps)

        def loss_of(rate: float) -> float:
            result = step(rate)
            console.progress("sweep", done=rates.index(rate), total=len(rates), unit="steps")
            return (
                sum(float(loss) for loss in result.losses.values()) if bool(result.is_applied) else math.nan
            )

        with console.bars():
            found = sweep(loss_of, rates, smoothing=options.smoothing)
        facts: dict[str, Any] = {
            "optimizer": recipe.optim.name,
            "objective": recipe.objective.name,
            "model": recipe.start.path or f"{recipe.model.name} {recipe.model.preset}",
            "batch_tokens": recipe.training.rows_per_step(recipe.data.row_length) * recipe.data.row_length,
            "recipe_rate": recipe.optim.peak_rate,
            "suggested": found.suggested,
            "lowest": found.lowest,
            "steepest": found.steepest,
            "has_diverged": found.has_diverged,
            "smoothing": options.smoothing,
        }
        with disk_errors(folder, doing="writing"):
            folder.mkdir(parents=True, exist_ok=True)
            lists = {"rates": found.rates, "losses": found.losses, "smoothed": found.smoothed}
            write_json(folder / "find-rate.json", {**facts, **lists})
            (folder / "find-rate.html").write_text(draw(found, facts), encoding="utf-8")
    console.result(
        {**facts, "page": str(folder / "find-rate.html")},
        text=(
            f"suggested: {found.suggested:.2g}   (a tenth of {found.lowest:.2g}, where the smoothed loss was lowest;"
            f" steepest at {found.steepest:.2g}; the recipe has {recipe.optim.peak_rate:.2g})\n"
            f"picture:   {folder / 'find-rate.html'}\n"
            f"next:      seedbed pretrain {options.recipe} optim.learning_rate={found.suggested:.2g}"
        ),
    )
    return 0


def rates_between(low: float, high: float, steps: int) -> list[float]:
    """Return rates from low to high, each the same multiple of the one before.

    Raises:
        ConfigError: fewer than ten steps, or no range.
    """
    from seedbed.errors import ConfigError

    if steps < _MIN_STEPS or not 0.0 < low < high:
        raise ConfigError(
            f"a sweep of {steps} steps from {low:g} to {high:g} shows nothing.",
            hint=f"at least {_MIN_STEPS} steps, and 0 < --low < --high",
        )
    return [low * (high / low) ** (index / (steps - 1)) for index in range(steps)]


def sweep(loss_of: Callable[[float], float], rates: Sequence[float], *, smoothing: float) -> Sweep:
    """Do one step at each rate until the loss is a twentieth above where it began.

    Args:
        loss_of: does a step at a rate and returns the loss before its update; NaN when it was not finite.
        rates: ascending.
        smoothing: share of the mean that is kept each step, in [0, 1).

    Raises:
        NumericError: the loss was not finite before it could be judged.
    """
    from seedbed.errors import NumericError

    done: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean, has_diverged = 0.0, False
    for rate in rates:
        loss = loss_of(rate)
        if not math.isfinite(loss):
            has_diverged = True
            break
        mean = smoothing * mean + (1.0 - smoothing) * loss
        done.append(rate)
        losses.append(loss)
        smoothed.append(mean / (1.0 - smoothing ** len(losses)))
        # Where it began is the highest of the first losses: one alone may be a lucky one.
        if len(losses) > _MIN_STEPS and smoothed[-1] > 1.05 * max(smoothed[:_MIN_STEPS]):
            has_diverged = True
            break
    if len(losses) < _MIN_STEPS:
        raise NumericError(
            f"the loss was not finite after {len(losses)} steps, at a rate of {rates[len(losses)]:.2g}.",
            hint="start lower, with --low",
        )
    # A loss is measured before its step: what it shows is the work of the rate before.
    cause = [done[0], *done[:-1]]
    lowest = cause[min(range(len(smoothed)), key=smoothed.__getitem__)]
    slopes = [smoothed[i + 1] - smoothed[i - 1] for i in range(1, len(smoothed) - 1)]
    steepest = cause[1 + min(range(len(slopes)), key=slopes.__getitem__)]
    return Sweep(cause, losses, smoothed, lowest, steepest, lowest / 10.0, has_diverged)


def draw(found: Sweep, facts: dict[str, Any]) -> str:
    """Return the page of a sweep."""
    from seedbed.page import Chart, Page, Series, format_number

    page = Page("Learning rates tried", lead=f"{facts['model']}, {facts['objective']}, {facts['optimizer']}")
    page.tiles(
        [
            (format_number(found.suggested, digits=2), "suggested peak rate"),
            (format_number(found.lowest, digits=2), "lowest smoothed loss"),
            (format_number(found.steepest, digits=2), "steepest descent"),
            (format_number(facts["recipe_rate"], digits=2), "in the recipe"),
        ]
    )
    by_rate = dict(zip(found.rates, found.smoothed, strict=True))
    nearest = min(by_rate, key=lambda rate: abs(math.log(rate / found.suggested)))
    page.line_chart(
        Chart(
            "Training loss while the rate rises",
            "learning rate",
            "loss (nats per target)",
            [
                Series(
                    "each step", list(zip(found.rates, found.losses, strict=True)), is_faint=True, color=0
                ),
                Series("smoothed", list(by_rate.items()), color=0),
                Series("suggested", [(nearest, by_rate[nearest])], has_markers=True, color=1),
                Series("lowest", [(found.lowest, by_rate[found.lowest])], has_markers=True, color=2),
            ],
            is_log_x=True,
        )
    )
    end = (
        "it was ended when the loss had risen above where it began"
        if found.has_diverged
        else "it ran to its end"
    )
    page.text(
        f"{len(found.losses)} steps of {facts['batch_tokens']:,} tokens from the initial weights; {end}.",
        "Suggested is a tenth of the rate at the lowest smoothed loss. It is a place to begin: a longer run, another"
        " batch size or another model may want another rate, and half and twice the rate are worth a try.",
    )
    return page.html()
