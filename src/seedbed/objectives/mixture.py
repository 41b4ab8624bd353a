"""Train several objectives in one run: which, how much of each, and how that changes over the run.

An entry is an objective with a share of the rows. How many rows each entry gives at a step is a function of the step and
the shares alone (largest remainder, the rest carried on), so the row at which an entry stands is a running sum, the same on
all workers. Its loss terms count by its share of the step's rows (`training/feed.py`). Objectives that can share a forward
pass are one entry: see `masked_lm` inside `sentence_order`.

Source: multi-task pretraining with sampling by size and temperature: T5, arXiv 1910.10683, section 3.5.2.
Differs from it: shares are kept exactly in every step instead of being drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from seedbed.config import Config, one_of
from seedbed.errors import ConfigError
from seedbed.models.config import Stack
from seedbed.objectives import OBJECTIVES
from seedbed.objectives.base import ObjectiveConfig

if TYPE_CHECKING:
    Single = ObjectiveConfig
else:
    Single = one_of(OBJECTIVES)

__all__ = ["CombinationConfig", "EntryConfig", "MixtureConfig", "Share", "rows_by_step"]


class EntryConfig(Config):
    """One objective of a mixture and its share of the rows."""

    objective: Single = Field(description="What is learned; any objective but a mixture.")
    label: str = Field(
        "", description="Name in logs and scores. Empty: the objective's name, numbered when used twice."
    )
    weight: float = Field(1.0, ge=0.0, description="Share of the rows at the start, relative to the others.")
    final_weight: float | None = Field(
        None, ge=0.0, description="Share at the end of the run, reached linearly. null: as at the start."
    )


class CombinationConfig(Config):
    """Base of what stands for several objectives; the class variables are those of `ObjectiveConfig`."""

    source: ClassVar[str] = ""
    fits: ClassVar[tuple[Stack, ...]] = ()
    needs: ClassVar[str] = ""
    default_model: ClassVar[str] = ""
    use: ClassVar[str] = ""

    name: str = Field("", description="Which combination.")

    @abstractmethod
    def parts(self) -> list[EntryConfig]:
        """Return the objectives it stands for."""


class MixtureConfig(CombinationConfig):
    """Several objectives, alternating by rows."""

    source: ClassVar = "multi-task mixtures: MT-DNN (1901.11504), T5 (1910.10683, section 3.5.2)"
    fits: ClassVar = ("encoder", "decoder", "encoder_decoder")
    needs: ClassVar = "what its entries need"
    use: ClassVar = "several objectives or tasks on one trunk"

    name: Literal["mixture"] = Field("mixture", description="Several objectives in one run.")
    entries: list[EntryConfig] = Field(min_length=1, description="The objectives and their shares.")
    size_temperature: float | None = Field(
        None,
        gt=0.0,
        description="Multiply each weight by (rows of the entry)^(1 / this): 1 samples in proportion to size, larger"
        " evens out small tasks. null: weights as given.",
    )

    def parts(self) -> list[EntryConfig]:
        """Return the entries."""
        return list(self.entries)

    @field_validator("entries")
    @classmethod
    def _labels(cls, entries: list[EntryConfig]) -> list[EntryConfig]:
        """Give every entry a label of its own."""
        labels: list[str] = []
        for entry in entries:
            wanted = entry.label or entry.objective.name
            number = sum(label.rsplit(":", 1)[0] == wanted for label in labels)
            if number and entry.label:
                raise ValueError(f"the label {entry.label!r} is given twice")
            labels.append(f"{wanted}:{number + 1}" if number else wanted)
        return [entry.updated(label=label) for entry, label in zip(entries, labels, strict=True)]

    @model_validator(mode="after")
    def _some_weight(self) -> MixtureConfig:
        if not any(entry.weight for entry in self.entries):
            raise ValueError("every entry has weight 0 at the start")
        if all(
            entry.final_weight == 0.0 or (entry.final_weight is None and not entry.weight)
            for entry in self.entries
        ):
            raise ValueError("every entry has weight 0 at the end")
        for entry in self.entries:
            if len(self.entries) > 1 and (reason := entry.objective.stands_alone):
                raise ValueError(f"{entry.label} must be the only objective of a run: {reason}")
        return self


@dataclass(frozen=True, slots=True)
class Share:
    """Hold an entry's share of the rows at the start and at the end of a run, and the rows that must stay together."""

    start: float
    end: float
    group_rows: int = 1


def rows_by_step(shares: Sequence[Share], *, rows_per_step: int, num_steps: int) -> npt.NDArray[np.int64]:
    """Return how many rows each entry gives at each step, (num_steps, entries).

    Each step every entry is owed its share of the rows, in whole groups; what it is owed beyond that is carried to the
    next step, and rows left over go to those owed most. So after any number of steps an entry is never off its share by
    more than a group. Where groups do not fill a step, that step has fewer rows.

    Raises:
        ConfigError: a group is larger than a step, or a step would be empty.
    """
    groups = np.array([share.group_rows for share in shares], dtype=np.int64)
    if groups.max() > rows_per_step:
        raise ConfigError(
            f"a group of {groups.max()} examples with in-batch negatives does not fit a step of {rows_per_step} rows.",
            hint="raise training.batch_tokens, or lower the objective's group",
        )
    start, end = np.array([share.start for share in shares]), np.array([share.end for share in shares])
    progress = np.arange(num_steps)[:, None] / max(1, num_steps)
    weights = start + (end - start) * progress
    quotas = rows_per_step * weights / weights.sum(axis=1, keepdims=True)
    owed = np.zeros(len(shares))
    table = np.zeros((num_steps, len(shares)), dtype=np.int64)
    for step in range(num_steps):
        owed += quotas[step]
        given = np.maximum(0, np.floor((owed + 1e-9) / groups).astype(np.int64)) * groups
        while given.sum() > rows_per_step:  # debts of earlier steps came due at once
            least = int(np.argmax(np.where(given > 0, given - owed, -np.inf)))
            given[least] -= groups[least]
        while (left := rows_per_step - int(given.sum())) > 0:
            fits = (groups <= left) & (quotas[step] > 0)
            if not fits.any():
                break
            most = int(np.argmax(np.where(fits, owed - given, -np.inf)))
            given[most] += groups[most]
        if not given.any():
            raise ConfigError(
                f"step {step} of the mixture would have no rows.", hint="raise training.batch_tokens"
            )
        table[step] = given
        owed -= given
    return table
