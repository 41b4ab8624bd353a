"""Turn the number of a window into micro-batches: the whole data side of a run, a pure function."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from seedbed.data.views import RowReader
from seedbed.errors import ConfigError
from seedbed.objectives.base import Objective
from seedbed.objectives.mixture import Share, rows_by_step
from seedbed.training.step import MicroBatch

__all__ = ["Entry", "Feed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One objective of a run with its rows.

    Attributes:
        label: its name in logs and scores.
        objective: makes the batches.
        reader: reads its rows.
        start, end: its share of the rows, relative to the others, at the start and at the end of the run.
    """

    label: str
    objective: Objective
    reader: RowReader
    start: float = 1.0
    end: float = 1.0


class Feed:
    """Hand out the micro-batches of any window of a run.

    Args:
        entries: the objectives of the run.
        rows_per_step: B over all entries.
        num_windows: steps planned; shares and rates are scheduled over them.
        micro_batch_rows: rows of one forward pass at most; entries with groups take whole groups.
        worker: which of the workers' parts of a window to hand out; which rows the window has does not depend on it.
        num_workers: how many parts there are.
        is_exact: cut the rows where one worker would cut them into micro-batches (`exact.py`).
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rows_per_step: int,
        num_windows: int,
        micro_batch_rows: int,
        worker: int = 0,
        num_workers: int = 1,
        is_exact: bool = False,
    ) -> None:
        self.entries = list(entries)
        self.num_windows = num_windows
        self.micro_batch_rows = micro_batch_rows
        self.worker = worker
        self.num_workers = num_workers
        self.is_exact = is_exact
        shares = [Share(e.start, e.end, e.objective.group_rows) for e in entries]
        self._rows: npt.NDArray[np.int64] = rows_by_step(
            shares, rows_per_step=rows_per_step, num_steps=num_windows
        )
        self._starts = self._rows.cumsum(axis=0) - self._rows
        for entry in entries:
            group = entry.objective.group_rows
            if 1 < micro_batch_rows < group:
                raise ConfigError(
                    f"{entry.label}: a group of {group} examples does not fit a forward pass of {micro_batch_rows} rows.",
                    hint="its negatives come from the group; lower the group, or raise runtime.memory_gib",
                )

    def rows(self, window: int) -> list[int]:
        """Return the rows each entry gives at a window."""
        return [int(count) for count in self._rows[window]]

    def micro_batches(self, window: int, *, device: torch.device | str = "cpu") -> list[MicroBatch]:
        """Make the micro-batches of a window, entry by entry."""
        progress = window / max(1, self.num_windows)
        total = int(self._rows[window].sum())
        made = []
        for index, entry in enumerate(self.entries):
            first, count = int(self._starts[window, index]), int(self._rows[window, index])
            group = entry.objective.group_rows
            size = max(group, self.micro_batch_rows // group * group)
            for start, number in self._cut(count, size if self.is_exact else group, size):
                rows, draws = entry.reader.read(first + start, number or group)
                batch, targets = entry.objective.make_batch(rows, draws, progress=progress)
                micro = MicroBatch(
                    batch,
                    targets,
                    entry=index,
                    share=count / total,
                    is_filler=not number,
                    counts=entry.objective.counts(targets),
                )
                made.append(micro.to(device))
        return made

    def _cut(self, count: int, unit: int, size: int) -> list[tuple[int, int]]:
        """Return (first row, rows) of this worker's micro-batches of `count` rows; rows of 0 mean a filler.

        Workers take neighbouring parts, in whole units, as equal as may be, and all have as many micro-batches.
        """
        if not count:
            return []
        units = -(-count // unit)
        edges = [min(count, unit * (units * w // self.num_workers)) for w in range(self.num_workers + 1)]
        most = max(b - a for a, b in itertools.pairwise(edges))
        start, end = edges[self.worker], edges[self.worker + 1]
        cut = [(at, min(size, end - at)) for at in range(start, end, size)]
        return cut + [(0, 0)] * (-(-most // size) - len(cut))
