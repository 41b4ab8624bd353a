"""Next-but-one prediction: predict each token from those up to two places before it. An example of an objective."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.rows import dense_batch, places_behind

__all__ = ["NextButOne", "NextButOneConfig"]


class NextButOneConfig(ObjectiveConfig):
    """Next-but-one prediction."""

    source: ClassVar = "an example"
    fits: ClassVar = ("decoder",)
    default_model: ClassVar = "llama"
    use: ClassVar = "showing how an objective is added"

    name: Literal["next_but_one"] = Field("next_but_one", description="Next-but-one prediction.")

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> NextButOne:
        """Make the objective; see `ObjectiveConfig.build`."""
        return NextButOne(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class NextButOne(Objective):
    """Predict the token after the next one; one term."""

    terms = ("next_but_one",)

    @property
    def raw_row_length(self) -> int:
        """T: the separator in front takes the place of the last token, which is only predicted."""
        return self.row_length

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Shift rows by one, targets by one more."""
        first = torch.full_like(rows.ids[:, :1], self.vocabulary.separator_id)
        batch = dense_batch(
            torch.cat([first, rows.ids[:, :-1]], dim=1),
            rows,
            prefix_id=None,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
            causal=True,
        )
        real = torch.arange(1, rows.shape[1])[None, :] < rows.lengths[:, None]
        at = places_behind(rows, 0)[:, :-1]
        return batch, {"next_but_one": Targets(at=at[real], values=rows.ids[:, 1:][real])}
