"""Do the occasional things of a run: log, validate, keep the best, stop early, save. The loop calls hooks in list order.

A hook sees finished steps as plain numbers (`on_step`) and may ask to act between two windows (`is_due`, `act`). What it
must remember across a resume lives in `state.hooks[<its name>]`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from seedbed.artifact import flush_to_disk, write_text
from seedbed.errors import disk_errors
from seedbed.training.averaging import evaluation_weights
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.parallel import any_worker, worker
from seedbed.training.state import TrainingState

__all__ = ["CheckpointHook", "Hook", "MetricsLog", "StepRecord", "TensorBoardHook", "ValidationHook"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one finished step did, as plain numbers; equal bit for bit in a resumed run.

    Attributes:
        window: windows of rows consumed once this step was done; the first step is 1.
        step: optimizer updates applied so far.
        loss: weighted sum of the mean losses, nats.
        losses: mean loss of each term.
        learning_rate: of this step.
        gradient_norm: before clipping.
        is_skipped: the gradient was not finite, and nothing was changed.
        tokens: tokens consumed so far.
        loss_scale: what a float16 loss was multiplied by, or None.
    """

    window: int
    step: int
    loss: float
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    is_skipped: bool
    tokens: int
    loss_scale: float | None = None


class Hook:
    """Do nothing; the base of all hooks."""

    name = ""

    def on_step(self, record: StepRecord, seconds: float) -> None:
        """See one finished step, in order, none left out. `seconds` is its wall time."""

    def is_due(self, state: TrainingState) -> bool:
        """Say whether to act now, between two windows; cheap, and a function of the state where results depend on it."""
        return False

    def act(self, state: TrainingState) -> None:
        """Act between two windows, all steps before which have been reported."""

    def wants_stop(self, state: TrainingState) -> bool:
        """Say whether the run should end here."""
        return False

    def finish(self, state: TrainingState) -> None:
        """End well: the plan is done, a hook stopped it or a signal interrupted it; all steps have been reported."""

    def close(self) -> None:
        """Release files; called after `finish`, and also when the run failed."""


class MetricsLog(Hook):
    """Write `metrics.jsonl` (the same bits in every run of a recipe) and `timing.jsonl` (times and rates).

    On a resume at window w, lines after w are cut off, since their steps will be done again. Of several workers the first writes.
    """

    name = "metrics"

    def __init__(self, folder: Path, *, window: int) -> None:
        self.folder = folder
        self._files: list[IO[str]] = []
        if worker() > 0:
            return
        with disk_errors(folder, doing="writing metrics in"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "timing.jsonl"):
                _cut(folder / name, window)
            self._files = [
                (folder / name).open("a", encoding="utf-8") for name in ("metrics.jsonl", "timing.jsonl")
            ]

    def on_step(self, record: StepRecord, seconds: float) -> None:
        """Write one line a step."""
        line = {"kind": "step", **asdict(record)}
        if record.loss_scale is None:
            del line["loss_scale"]
        self.write(line)
        self._write(1, {"kind": "step", "window": record.window, "seconds": round(seconds, 6)})

    def write(self, line: Mapping[str, Any]) -> None:
        """Write any other line; it must hold `window`."""
        self._write(0, line)

    def flush(self) -> None:
        """Push lines to the disk, before a checkpoint that stands on them; those of a record of rows, beside it, too."""
        if not self._files:
            return
        with disk_errors(self.folder, doing="writing metrics in"):
            for file in self._files:
                file.flush()
            for path in sorted(self.folder.glob("*.jsonl")):
                flush_to_disk(path)
            flush_to_disk(self.folder)

    def close(self) -> None:
        """Flush and close; where the disk is full or fails, close all the same."""
        try:
            self.flush()
        finally:
            for file in self._files:
                with disk_errors(self.folder, doing="writing metrics in"):
                    file.close()

    def _write(self, number: int, line: Mapping[str, Any]) -> None:
        if not self._files:
            return
        file = self._files[number]
        with disk_errors(self.folder, doing="writing metrics in"):
            file.write(json.dumps({k: _plain(v) for k, v in line.items()}, ensure_ascii=False) + "\n")
            file.flush()


class ValidationHook(Hook):
    """Score the validation rows at fixed masks, keep the best weights, and stop when they no longer improve.

    Args:
        evaluate: returns `{"loss": ..., ...}` of the state's modules.
        every: windows between validations; one is always done at `last_window`.
        log: where results are written.
        checkpoints: where weights go, or None.
        keeps_best: save the weights of the lowest loss.
        num_averaged: save the weights of so many last validations.
        patience: validations without a better loss before stopping; 0 never stops.
        on_result: told of each validation.
        better_when_lower: what of the scores decides instead of the loss, for example the negative of an accuracy.
        is_allowed: scores that are not allowed are never the best.
    """

    name = "validation"

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, float]],
        *,
        every: int,
        last_window: int,
        log: MetricsLog,
        checkpoints: Checkpoints | None = None,
        keeps_best: bool = True,
        num_averaged: int = 0,
        patience: int = 0,
        on_result: Callable[[int, Mapping[str, float]], None] | None = None,
        better_when_lower: Callable[[Mapping[str, float]], float] = lambda scores: scores["loss"],
        is_allowed: Callable[[Mapping[str, float]], bool] = lambda scores: True,
    ) -> None:
        self.evaluate = evaluate
        self.every = every
        self.last_window = last_window
        self.log = log
        self.checkpoints = checkpoints
        self.keeps_best = keeps_best
        self.num_averaged = num_averaged
        self.patience = patience
        self.on_result = on_result
        self.better_when_lower = better_when_lower
        self.is_allowed = is_allowed

    def is_due(self, state: TrainingState) -> bool:
        """Say whether a validation belongs here; not again where one was done before a resume."""
        if state.hooks.get(self.name, {}).get("last_window") == state.window:
            return False
        return state.window % self.every == 0 or state.window == self.last_window

    def act(self, state: TrainingState) -> None:
        """Validate."""
        with evaluation_weights(state):
            self._act(state)

    def _act(self, state: TrainingState) -> None:
        """Validate, with the weights that are evaluated in the model."""
        scores = dict(self.evaluate())
        memory = state.hooks.setdefault(self.name, {"best": None, "best_window": None, "num_worse": 0})
        value = self.better_when_lower(scores)
        if self.is_allowed(scores) and (memory["best"] is None or value < memory["best"]):
            memory.update(best=value, best_window=state.window, num_worse=0)
            if self.keeps_best and self.checkpoints is not None:
                self.checkpoints.save_best(state)
        else:
            memory["num_worse"] += 1
        if self.num_averaged and self.checkpoints is not None:
            self.checkpoints.save_for_mean(state, keep=self.num_averaged)
        memory["last_window"] = state.window
        memory.setdefault("history", []).append([state.window, value])
        self.log.write({"kind": "validation", "window": state.window, "step": state.step, **scores})
        if self.on_result is not None:
            self.on_result(state.window, scores)

    def wants_stop(self, state: TrainingState) -> bool:
        """Say whether patience has run out."""
        return bool(self.patience) and state.hooks.get(self.name, {}).get("num_worse", 0) >= self.patience


class CheckpointHook(Hook):
    """Save full checkpoints by time, by steps, and at the end."""

    name = "checkpoint"

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        log: MetricsLog,
        minutes: float,
        steps: int,
        extra: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.checkpoints = checkpoints
        self.log = log
        self.minutes = minutes
        self.steps = steps
        self.extra = extra
        self._saved_at = time.monotonic()

    def is_due(self, state: TrainingState) -> bool:
        """Say whether time or steps are up. When one is taken changes no result, so the clock may decide, one for all workers."""
        by_steps = self.steps > 0 and state.window % self.steps == 0
        return any_worker(by_steps or time.monotonic() - self._saved_at > 60 * self.minutes)

    def act(self, state: TrainingState) -> None:
        """Save, with the log on the disk first."""
        self.log.flush()
        self.checkpoints.save(state, extra=self.extra())
        self._saved_at = time.monotonic()

    def finish(self, state: TrainingState) -> None:
        """Save where the run ended or was interrupted."""
        self.act(state)


class TensorBoardHook(Hook):
    """Write losses, rates and norms for TensorBoard."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            from seedbed.errors import DependencyError

            raise DependencyError(
                "tensorboard", extra="track", needed_for="training.tensorboard=true"
            ) from error
        self.writer = SummaryWriter(str(folder))

    def on_step(self, record: StepRecord, seconds: float) -> None:
        """Write one point a step."""
        for name, value in (
            ("train/loss", record.loss),
            ("train/learning_rate", record.learning_rate),
            ("train/gradient_norm", record.gradient_norm),
        ):
            self.writer.add_scalar(name, value, record.window)

    def validation(self, window: int, scores: Mapping[str, float]) -> None:
        """Write one validation."""
        for name, value in scores.items():
            self.writer.add_scalar(f"validation/{name}", value, window)

    def close(self) -> None:
        """Close the writer."""
        self.writer.close()


def _plain(value: Any) -> Any:
    """Return a JSON value; JSON has no NaN, and a skipped step has one as its loss."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _cut(path: Path, window: int) -> None:
    """Keep the lines of a log up to a window, and drop a last line that was not finished."""
    if not path.exists():
        return
    kept: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                if not line.endswith("\n") or int(json.loads(line)["window"]) > window:
                    continue
            except (ValueError, KeyError):
                _logger.warning("%s: a damaged line was dropped", path)
                continue
            kept.append(line)
    write_text(path, "".join(kept))
