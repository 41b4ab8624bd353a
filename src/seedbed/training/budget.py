"""Turn a budget into a plan: how many steps, how many rows in a forward pass.

Measured once, before step one, on copies: the state a run starts from is not touched. The plan is written into the run
folder; a resumed run follows it instead of measuring again, and the resolved recipe repeats it exactly.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seedbed.errors import MemoryLimitError
from seedbed.models.heads import LMHead
from seedbed.models.trunks import set_recomputing
from seedbed.runtime import autocast
from seedbed.training.config import TrainingConfig
from seedbed.training.parallel import agreed
from seedbed.training.step import Learner, MicroBatch

__all__ = ["Plan", "fit_micro_batch", "plan_steps", "saved_bytes"]

_MAX_MICRO_BATCH_ROWS = 64
_MAX_VALIDATIONS = 20
_VALIDATION_SHARE = 0.2  # of the time there is, at most; two validations are made in any case
_PORTION_ROWS = 8  # of the loss while its memory is measured: even two short rows have more targets
_LOGIT_COPIES = 3  # of a portion's logits at a time: as they come, in float32, their gradient
_SLACK = 1.5  # what a step needs besides the tensors saved for backward: gradients of activations, buffers, allocator


@dataclass(frozen=True, slots=True)
class Plan:
    """Say how a run proceeds.

    Attributes:
        num_windows: optimizer steps planned.
        rows_per_step: B over all workers and micro-batches.
        micro_batch_rows: rows of one forward pass; changes rounding only.
        forecast_seconds: training time the probe expects, validations included; 0 when there was no probe.
        note: what was cut and why, or "".
        validation_steps: steps from one validation to the next.
    """

    num_windows: int
    rows_per_step: int
    micro_batch_rows: int
    forecast_seconds: float
    note: str
    validation_steps: int = 0

    def every(self) -> int:
        """Return the steps from one validation to the next; plans that do not say so have twenty validations."""
        return self.validation_steps or max(1, self.num_windows // _MAX_VALIDATIONS)


def saved_bytes(learner: Learner, micro: MicroBatch, *, compute_dtype: torch.dtype) -> int:
    """Return the bytes autograd saves for the backward pass of one micro-batch, parameters not counted.

    Counted exactly through saved-tensor hooks, so the answer depends on the model and the rows alone, not on what the
    allocator or the rest of the machine do.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in learner.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    device_type = next(learner.parameters()).device.type
    scales = dict.fromkeys(learner.objectives[micro.entry].terms, 1.0)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(device_type, compute_dtype),
    ):
        loss, _ = learner(micro, scales, None, None)
    del loss
    return sum(seen.values())


def fit_micro_batch(
    learner: Learner,
    sample: Callable[[int], MicroBatch],
    *,
    rows_per_step: int,
    memory_bytes: int,
    compute_dtype: torch.dtype,
    group_rows: int = 1,
    num_recomputed_layers: int = 0,
    max_rows: int = _MAX_MICRO_BATCH_ROWS,
    fixed_bytes: int | None = None,
) -> int:
    """Return the largest divisor of the step's rows whose forward and backward pass fit the memory.

    Args:
        learner: what trains.
        sample: makes a micro-batch of so many rows.
        rows_per_step: B.
        memory_bytes: allowed for one step, weights, gradients and optimizer included.
        compute_dtype: as in training.
        group_rows: rows that must stay together.
        num_recomputed_layers: layers of a model that runs them again in the backward pass, one at a time; 0: it does not.
        max_rows: the answer at most.
        fixed_bytes: what weights, gradients and optimizer take. None: the learner's weights four times, for two moments.

    Raises:
        MemoryLimitError: not even one row (one group) fits.
    """
    few = max(min(2, rows_per_step), group_rows)

    def saved_of(rows: int) -> int:
        micro = sample(rows)
        saved = saved_bytes(learner, micro, compute_dtype=compute_dtype)
        if num_recomputed_layers:
            set_recomputing(learner, False)
            saved += saved_bytes(learner, micro, compute_dtype=compute_dtype) // num_recomputed_layers
            set_recomputing(learner, True)
        return saved

    if fixed_bytes is None:
        fixed_bytes = 4 * sum(p.numel() * p.element_size() for p in learner.parameters())
    fixed: float = fixed_bytes
    limits = {head: head.logits_bytes for head in learner.modules() if isinstance(head, LMHead)}
    if any(limits.values()):
        # A loss by portions keeps a gradient of the matrix, however many rows there are, and for a while a portion of logits.
        for head in limits:
            head.logits_bytes = 4 * head.weight.shape[0] * _PORTION_ROWS
        once, twice = saved_of(few), saved_of(2 * few)
        for head, num_bytes in limits.items():
            head.logits_bytes = num_bytes
        per_row = (twice - once) / few * _SLACK
        fixed += 2 * once - twice + _LOGIT_COPIES * max(limits.values())
    else:
        per_row = saved_of(few) / few * _SLACK
    fitting = int((memory_bytes - fixed) // per_row)
    if fitting < group_rows:
        what = "one row" if group_rows == 1 else f"a group of {group_rows} rows"
        raise MemoryLimitError(
            f"{what} needs {(group_rows * per_row + fixed) / 2**30:.2f} GiB"
            f" ({fixed / 2**30:.2f} for weights, gradients and optimizer),"
            f" the limit is {memory_bytes / 2**30:.2f} GiB.",
            hint="a smaller model.preset or data.row_length, or a higher runtime.memory_gib",
        )
    limit = min(fitting, max(max_rows, group_rows), rows_per_step)
    if group_rows > 1:
        return limit // group_rows * group_rows
    return next(rows for rows in range(limit, 0, -1) if rows_per_step % rows == 0)


def plan_steps(
    config: TrainingConfig,
    *,
    row_length: int,
    micro_batch_rows: int,
    measure: Callable[[], tuple[float, float]] | None,
) -> Plan:
    """Turn the budget into a number of steps.

    Args:
        config: with at most one budget; none means five minutes.
        row_length: T.
        micro_batch_rows: as chosen.
        measure: returns (seconds a step, seconds a validation), or None to plan without a clock.
    """
    rows = config.rows_per_step(row_length)
    minutes = config.budget_minutes
    steps = config.budget_steps
    if config.budget_tokens is not None:
        steps = max(1, config.budget_tokens // (rows * row_length))
    if steps is None and minutes is None:
        minutes = 5.0
    note, forecast, num_validations = "", 0.0, _MAX_VALIDATIONS
    if measure is not None and (minutes is not None or config.max_minutes is not None):
        step_seconds, validation_seconds = measure()
        limit = min(m for m in (minutes, config.max_minutes) if m is not None)
        affordable = int(_VALIDATION_SHARE * 60 * limit / max(validation_seconds, 1e-9))
        num_validations = max(2, min(_MAX_VALIDATIONS, affordable))

        def spent(steps: int) -> float:
            """Return the seconds of so many steps with their validations."""
            count = steps / config.validation_steps if config.validation_steps else num_validations
            return steps * step_seconds + count * validation_seconds

        def fitting(limit: float) -> int:
            fixed, a_step = spent(0), spent(1) - spent(0)
            return max(1, int((60 * limit - fixed) / a_step))

        if minutes is not None:
            steps = fitting(minutes)
        assert steps is not None
        if config.max_minutes is not None and (most := fitting(config.max_minutes)) < steps:
            note = (
                f"cut from {steps} to {most} steps: the probe forecasts {step_seconds * steps / 60:.1f} minutes,"
                f" {config.max_minutes:g} are allowed"
            )
            steps = most
        forecast = spent(steps)
    assert steps is not None, "a budget in minutes needs a probe"
    every = config.validation_steps or max(1, steps // num_validations)
    return Plan(steps, rows, micro_batch_rows, forecast, note, every)


def time_steps(
    run: Callable[[Any, int], object],
    state: Any,
    *,
    seconds: float = 4.0,
    at_least: int = 3,
    copies: bool = True,
) -> float:
    """Return the median seconds of a step after one step of warm-up, run on a deep copy of the state, or on itself."""
    scratch = copy.deepcopy(state) if copies else state
    run(scratch, 0)
    times: list[float] = []
    while len(times) < at_least or sum(times) < seconds:
        began = time.perf_counter()
        run(scratch, len(times) + 1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(agreed(time.perf_counter() - began))  # all workers do as many steps
    return _median(times)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
