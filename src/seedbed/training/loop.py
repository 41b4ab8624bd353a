"""Run steps until the plan is done, somebody stops it, or numbers go wrong. The loop knows time and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from seedbed.errors import NumericError
from seedbed.training.hooks import Hook, StepRecord
from seedbed.training.late import LateNumbers
from seedbed.training.loss_scale import LossScale
from seedbed.training.parallel import any_worker, sum_over_workers
from seedbed.training.state import TrainingState
from seedbed.training.step import StepResult

__all__ = ["Outcome", "fit"]

MAX_SKIPS_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: "finished", "stopped" (a hook, early stopping) or "interrupted" (a signal)."""

    reason: str
    window: int


def fit(
    state: TrainingState,
    run_window: Callable[[TrainingState], StepResult],
    *,
    num_windows: int,
    tokens_per_window: int,
    learning_rate: Callable[[int], float],
    hooks: Sequence[Hook],
    is_interrupted: Callable[[], bool] = lambda: False,
    labels: Sequence[str] = (),
    recover: Callable[[TrainingState, int, int], None] | None = None,
) -> Outcome:
    """Train from `state.window` to `num_windows`.

    A step's numbers are read one step late, while the next one runs, so that a GPU never waits for the host; before
    hooks act, everything has been read. Stopping anywhere and calling again goes on as if never stopped. A float16 gradient
    that overflowed under a finite loss is answered by its scale, which halves: the step is skipped, but counts as no fault.

    Args:
        state: what trains; advanced in place.
        run_window: does the step of `state.window`; a pure function of the state.
        num_windows: where the plan ends.
        tokens_per_window: for the records.
        learning_rate: of a window, for the records.
        hooks: called in this order.
        is_interrupted: true once a signal has asked to stop, which may reach one worker only; the step at hand is finished first.
        labels: names of the entries of a mixture, for the records; none needed for one objective.
        recover: called with the first and the last window (from 1) of three gradients in a row that were not applied; puts
            weights and optimizer back, or raises. None: raise.

    Raises:
        NumericError: three gradients in a row that were not finite, or spikes, and no way back; weights and optimizer are those
            before the first.
    """
    unread: tuple[StepResult, LateNumbers, int, float] | None = None

    def name_of(key: tuple[int, str]) -> str:
        return f"{labels[key[0]]}.{key[1]}" if len(labels) > 1 else key[1]

    def read() -> bool:
        """Report the last step; returns whether weights and optimizer were put back for it."""
        nonlocal unread
        if unread is None:
            return False
        result, late, window, seconds = unread
        unread = None
        numbers = late.read()
        is_applied = numbers.is_applied
        copies = 1 if state.shards is None else state.shards.num_copies
        losses = sum_over_workers({key: loss / copies for key, loss in numbers.losses.items()})
        state.num_skipped += not is_applied
        if is_applied:
            state.skips_in_a_row = 0
        elif math.isfinite(numbers.gradient_norm) or not _is_overflow(numbers.loss_scale, losses.values()):
            state.skips_in_a_row += 1
        record = StepRecord(
            window=window,
            step=window - state.num_skipped,
            loss=sum(result.scales[key] * loss for key, loss in losses.items()),
            losses={name_of(key): loss for key, loss in losses.items()},
            learning_rate=learning_rate(window - 1),
            gradient_norm=numbers.gradient_norm,
            is_skipped=not is_applied,
            tokens=window * tokens_per_window,
            loss_scale=numbers.loss_scale,
        )
        for hook in hooks:
            hook.on_step(record, seconds)
        if state.skips_in_a_row < MAX_SKIPS_IN_A_ROW:
            return False
        first = window - state.skips_in_a_row + 1
        if recover is None:
            raise NumericError(
                f"the gradient was {state.bad_gradient} in {state.skips_in_a_row} steps in a row (windows {first} to {window},"
                f" loss {record.loss}); weights and optimizer are as they were before.",
                hint="lower optim.learning_rate, or look at the rows of these windows",
            )
        recover(state, first, window)
        state.skips_in_a_row = 0
        return True

    # A run that was stopped and then resumed has stopped already.
    reason = "stopped" if any(hook.wants_stop(state) for hook in hooks) else "finished"
    try:
        while state.window < num_windows and reason == "finished":
            began = time.perf_counter()
            memory = None if state.spikes is None else state.spikes.memory
            result = run_window(state)
            if read():  # this step ran on weights that were put back: its window begins anew
                if state.spikes is not None and memory is not None:
                    state.spikes.memory = memory
                continue
            state.window += 1
            unread = (result, LateNumbers(result), state.window, time.perf_counter() - began)
            due = [hook for hook in hooks if hook.is_due(state)]
            if due:
                read()
                for hook in due:
                    hook.act(state)
            if any(hook.wants_stop(state) for hook in hooks):
                reason = "stopped"
                break
            if any_worker(is_interrupted()):
                reason = "interrupted"
                break
        read()
        for hook in hooks:
            hook.finish(state)
    finally:
        for hook in reversed(hooks):
            hook.close()
    return Outcome(reason, state.window)


def _is_overflow(loss_scale: float | None, losses: Iterable[float]) -> bool:
    """Say whether a smaller scale can help a gradient that was not finite: not where there is none, nor if the loss was not."""
    return (
        loss_scale is not None and loss_scale > LossScale.SMALLEST and all(math.isfinite(x) for x in losses)
    )
