"""Masked next-token prediction: hide tokens, see both sides, and predict each hidden token from the place before it.

With its output shifted by one, masked prediction has the form of causal prediction, so one stack and one head learn both:
rows of this objective beside rows of `causal_lm` are the masked-causal hybrid (`hybrid.py`).

Source: L. Charpentier, D. Samuel, "GPT or BERT: why not both?", BabyLM 2024, arXiv 2410.24159.
Differs from it: rows are dense windows of the stream, begin with the separator as causal rows do, and the number of
targets of a row is exact.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.masking import Masking, MaskingConfig
from seedbed.objectives.rows import dense_batch, places_behind

__all__ = ["MaskedNextToken", "MaskedNextTokenConfig"]


class MaskedNextTokenConfig(ObjectiveConfig, MaskingConfig):
    """Masked next-token prediction (GPT-BERT)."""

    source: ClassVar = "GPT-BERT (Charpentier and Samuel, 2024, 2410.24159)"
    fits: ClassVar = ("encoder", "decoder")
    needs: ClassVar = "windows of text, a mask token; word marks for whole words"
    default_model: ClassVar = "llama"
    use: ClassVar = "the masked half of the hybrid; alone, a masked model whose output is shifted"
    speaks: ClassVar = "generate"

    name: Literal["masked_next_token"] = Field(
        "masked_next_token", description="Masked next-token prediction."
    )

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> MaskedNextToken:
        """Make the objective; see `ObjectiveConfig.build`."""
        return MaskedNextToken(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class MaskedNextToken(Objective):
    """Predict hidden tokens from the place before them; one term, "masked_next_token"."""

    terms = ("masked_next_token",)
    config: MaskedNextTokenConfig

    def __init__(
        self,
        config: MaskedNextTokenConfig,
        vocabulary: Vocabulary,
        *,
        row_length: int,
        is_segmented: bool,
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self.masking = Masking(config, vocabulary, row_length=self.raw_row_length, name=config.name)

    @property
    def raw_row_length(self) -> int:
        """T: the last token of a row is predicted and not read."""
        return self.row_length

    def for_evaluation(self) -> MaskedNextToken:
        """Return 15 % single tokens with shares 80/10/10, as masked models are compared on."""
        return MaskedNextToken(
            MaskedNextTokenConfig(initial_mask_rate=None),
            self.vocabulary,
            row_length=self.row_length,
            is_segmented=self.is_segmented,
        )

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Hide tokens, put the separator in front, leave the last token away."""
        masked = self.masking(rows, draws, progress=progress)
        first = torch.full_like(rows.ids[:, :1], self.vocabulary.separator_id)
        batch = dense_batch(
            torch.cat([first, masked.ids[:, :-1]], dim=1),
            rows,
            prefix_id=None,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
        )
        # Raw place i is read at i + 1 and so predicted at i.
        return batch, {"masked_next_token": masked.targets(places_behind(rows, 0))}
