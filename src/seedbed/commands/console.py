"""Talk to the person at the terminal, or to the pipe.

Results and `--json` go to standard output, everything else to standard error. Bars appear on a terminal only; a pipe
gets a plain line now and then.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from seedbed.progress import duration

if TYPE_CHECKING:
    from seedbed.recipe import Recipe

__all__ = ["Console", "add_recipe_arguments", "quantity", "read_recipe"]

_PLAIN_SECONDS = 10.0


class Console:
    """Print results, notes, tables and progress; nothing where `is_silent`, as on all workers of a run but the first."""

    def __init__(self, *, as_json: bool = False, is_silent: bool = False) -> None:
        self.as_json = as_json
        self.is_silent = is_silent
        self._err = RichConsole(stderr=True, highlight=False, emoji=False, quiet=is_silent)
        self._bars: Progress | None = None
        self._tasks: dict[str, tuple[TaskID, float]] = {}
        self._told: dict[str, tuple[float, float]] = {}

    def note(self, text: str = "") -> None:
        """Say something on standard error."""
        self._err.print(text, markup=False, soft_wrap=True)

    def heading(self, text: str) -> None:
        """Begin a part."""
        self._err.print(f"\n{text}", style="bold", markup=False, soft_wrap=True)

    def table(self, rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> None:
        """Print a small table on standard error."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index > 0)
        for row in rows:
            table.add_row(*row)
        self._err.print(table)

    def result(self, values: Mapping[str, Any], *, text: str | None = None) -> None:
        """End a command: JSON with `--json`, else `text` (or nothing)."""
        if self.is_silent:
            return
        if self.as_json:
            sys.stdout.write(json.dumps(values, ensure_ascii=False, indent=1) + "\n")
        elif text is not None:
            sys.stdout.write(text + "\n")

    @contextmanager
    def bars(self) -> Iterator[None]:
        """Show progress bars while the block runs."""
        if not self._err.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[amount]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self._err, transient=True) as self._bars:
            try:
                yield
            finally:
                self._bars, self._tasks = None, {}

    def progress(self, phase: str, *, done: int, total: int | None, unit: str, detail: str = "") -> None:
        """Show how far a phase is (`seedbed.progress.Progress`)."""
        now = time.monotonic()
        if self._bars is not None:
            if phase not in self._tasks:
                self._tasks[phase] = (self._bars.add_task(phase, total=total, amount="", rate=""), now)
            task, began = self._tasks[phase]
            rate = detail or f"{quantity(done / max(now - began, 1e-3), unit)}/s"
            self._bars.update(task, completed=done, total=total, amount=quantity(done, unit), rate=rate)
            return
        began, told = self._told.setdefault(phase, (now, now))
        if now - told >= _PLAIN_SECONDS:
            self._told[phase] = (began, now)
            of = f" of {quantity(total, unit)}" if total else ""
            left = f", {duration((now - began) * (total - done) / done)} left" if total and done else ""
            rate = detail or f"{quantity(done / (now - began), unit)}/s"
            self.note(f"{phase}: {quantity(done, unit)}{of}, {rate}{left}")


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every stage command takes."""
    parser.add_argument("recipe", type=Path, help="the recipe (YAML); `seedbed config` prints one")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override any key of the recipe"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument("--strict", action="store_true", help="fail (exit 3) when any input line is rejected")
    parser.add_argument(
        "--replace", action="store_true", help="make stages anew that were made differently before"
    )


def read_recipe(options: argparse.Namespace) -> Recipe:
    """Read the recipe and its overrides."""
    from seedbed.config import load_config
    from seedbed.recipe import Recipe

    return load_config(Recipe, options.recipe, options.overrides)


def quantity(value: float, unit: str) -> str:
    """Write an amount with its unit for people: 12.3 MB, 1.2M tokens."""
    if unit == "bytes":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    for size, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if size == 1e4 else size):.1f}{name} {unit}"
    return f"{value:,.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
