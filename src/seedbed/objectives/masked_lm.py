"""Masked language modelling: hide some tokens of a row, predict them from both sides.

Source: BERT, arXiv 1810.04805, section 3.1; whole words as in its later release; other shares and rates in Wettig et
al., arXiv 2202.08005; a falling rate in Ankner et al., arXiv 2305.15096.
Differs from BERT: rows are dense windows of the stream of documents instead of padded pairs, with [CLS] before each;
the number of targets of a row is exact (the lowest draws win), where BERT rounds up to at least one and skips words
that do not fit; random replacements are ordinary tokens, never special ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.objectives.base import Objective, ObjectiveConfig, Prediction, Vocabulary
from seedbed.objectives.masking import Masking, MaskingConfig
from seedbed.objectives.rows import dense_batch, places_behind

__all__ = ["MaskedLM", "MaskedLMConfig"]


class MaskedLMConfig(MaskingConfig, ObjectiveConfig):
    """Masked language modelling (BERT)."""

    source: ClassVar = "BERT (Devlin et al., 2018, 1810.04805); Wettig et al. 2022, 2202.08005"
    fits: ClassVar = ("encoder",)
    needs: ClassVar = "windows of text, a mask token; word marks for whole words"
    default_model: ClassVar = "modernbert"
    use: ClassVar = "understanding: classification, tagging, search; stands many passes over little text"
    speaks: ClassVar[Literal["fill_mask"]] = "fill_mask"

    name: Literal["masked_lm"] = Field("masked_lm", description="Masked language modelling.")

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> MaskedLM:
        """Make the objective; see `ObjectiveConfig.build`."""
        return MaskedLM(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class MaskedLM(Objective):
    """Hide tokens, predict them; one term, "masked_lm"."""

    terms = ("masked_lm",)
    config: MaskedLMConfig

    def __init__(
        self, config: MaskedLMConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self._num_prefix = 0 if vocabulary.cls_id is None else 1
        self.masking = Masking(config, vocabulary, row_length=self.raw_row_length)

    @property
    def raw_row_length(self) -> int:
        """T less the [CLS] that begins a row."""
        return self.row_length - self._num_prefix

    def for_evaluation(self) -> MaskedLM:
        """Return 15 % single tokens with shares 80/10/10: the targets every masked model is compared on."""
        return MaskedLM(
            MaskedLMConfig(initial_mask_rate=None),
            self.vocabulary,
            row_length=self.row_length,
            is_segmented=self.is_segmented,
        )

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Hide tokens of the rows, put [CLS] in front."""
        masked = self.masking(rows, draws, progress=progress)
        batch = dense_batch(
            masked.ids,
            rows,
            prefix_id=self.vocabulary.cls_id,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
        )
        return batch, {"masked_lm": masked.targets(places_behind(rows, self._num_prefix))}

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Predict at the hidden places only; the trunk's last layer computes nothing else either."""
        target = targets["masked_lm"]
        hidden = modules["trunk"](
            batch, dropout_key=dropout_key, embedding_delta=embedding_delta, at=target.at
        )
        return {"masked_lm": Prediction(hidden.last, modules["head"], target)}
