"""Masked diffusion: hide a random share of each row, from almost nothing to everything; the model can then write in any order.

Source: S. Sahoo et al., "Simple and Effective Masked Diffusion Language Models" (MDLM), arXiv 2406.07524, equation 10 with
the linear schedule: the negative log-likelihood of a text is bounded by the mean over t of 1/t times the loss at tokens
masked with probability t.
Differs from it: instead of a continuous t with each token masked by chance, the number n of masked tokens is drawn evenly
from 1..L and exactly n are masked, weighted L / n. That is the same bound with the chance in t integrated out (order-agnostic
autoregressive models, E. Hoogeboom et al., arXiv 2110.02037, section 3), so the loss is still an upper bound on nats a
token, with less variance. The largest share may grow over a run, which is ours. The model is not told t (section 3.5 finds no
need). The generator is in `generation/diffusion.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.store import SPECIAL
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Objective, ObjectiveConfig, Prediction, Vocabulary
from seedbed.objectives.rows import dense_batch, places_behind

__all__ = ["MaskedDiffusion", "MaskedDiffusionConfig"]


class MaskedDiffusionConfig(ObjectiveConfig):
    """Masked diffusion language modelling (MDLM)."""

    source: ClassVar = "MDLM (Sahoo et al., 2024, 2406.07524); Hoogeboom et al. 2021, 2110.02037"
    fits: ClassVar = ("encoder", "decoder")
    needs: ClassVar = "windows of text, a mask token"
    default_model: ClassVar = "modernbert"
    use: ClassVar = (
        "generation in any order and many passes over little text; a likelihood bound for an encoder"
    )
    speaks: ClassVar = "fill_mask"

    name: Literal["masked_diffusion"] = Field("masked_diffusion", description="Masked diffusion.")
    min_mask_rate: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Least share masked in a row. 0 (one token): an exact bound; more: less variance, and no bound.",
    )
    max_mask_rate: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Largest share masked in a row; below 1 the model cannot start from nothing.",
    )
    initial_max_mask_rate: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Largest share at the start of the run, from which it goes linearly to max_mask_rate. null: constant. Rows"
        " with little hidden teach sooner.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> MaskedDiffusionConfig:
        least = min(self.max_mask_rate, self.initial_max_mask_rate or 1.0)
        if self.min_mask_rate > least:
            raise ValueError(f"min_mask_rate {self.min_mask_rate:g} is above the largest rate, {least:g}")
        return self

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> MaskedDiffusion:
        """Make the objective; see `ObjectiveConfig.build`."""
        return MaskedDiffusion(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class MaskedDiffusion(Objective):
    """Predict what a random share of a row hides; one term, "masked_diffusion", in nats a token (a bound)."""

    terms = ("masked_diffusion",)
    config: MaskedDiffusionConfig

    def __init__(
        self,
        config: MaskedDiffusionConfig,
        vocabulary: Vocabulary,
        *,
        row_length: int,
        is_segmented: bool,
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        if vocabulary.mask_id is None:
            raise IncompatibleError(
                "objective masked_diffusion needs a mask token; the vocabulary has none.",
                hint="learn a tokenizer with seedbed (all have [MASK]), or choose objective.name=causal_lm",
            )
        self.mask_id = vocabulary.mask_id
        self._num_prefix = 0 if vocabulary.cls_id is None else 1

    @property
    def raw_row_length(self) -> int:
        """T less the [CLS] that begins a row."""
        return self.row_length - self._num_prefix

    def for_evaluation(self) -> MaskedDiffusion:
        """Return the exact bound."""
        return MaskedDiffusion(
            MaskedDiffusionConfig(),
            self.vocabulary,
            row_length=self.row_length,
            is_segmented=self.is_segmented,
        )

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Mask n of each row's tokens, n drawn evenly; separators are always seen and never predicted."""
        length = rows.shape[1]
        position = torch.arange(length)
        can = (position[None, :] < rows.lengths[:, None]) & ((rows.marks & SPECIAL) == 0)  # (B, L)
        real = can.sum(dim=1)  # (B,)
        low = (self.config.min_mask_rate * real).long().clamp(min=1)
        initial, final = self.config.initial_max_mask_rate, self.config.max_mask_rate
        largest = final if initial is None else initial + (final - initial) * progress
        high = torch.maximum((largest * real).round().long(), low)
        share = (draws.rows("masked_diffusion rate").long() & 0xFFFFFFFF).double() / 2**32
        number = torch.minimum(low + (share * (high - low + 1)).long(), high).clamp(max=real)  # (B,)
        score = draws.positions("masked_diffusion choice", length).long() * length + position
        rank = (
            torch.where(can, score, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True).argsort(dim=1)
        )
        hidden = can & (rank < number[:, None])
        batch = dense_batch(
            torch.where(hidden, self.mask_id, rows.ids),
            rows,
            prefix_id=self.vocabulary.cls_id,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
        )
        weight = (real / number.clamp(min=1)).float()[:, None].expand_as(rows.ids)
        targets = Targets(
            at=places_behind(rows, self._num_prefix)[hidden], values=rows.ids[hidden], weights=weight[hidden]
        )
        return batch, {"masked_diffusion": targets}

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Predict at hidden places; the mask token itself is never an answer (zero masking probability, section 3.2.3)."""
        never = {**modules, "head": _NeverMask(modules["head"], self.mask_id)}
        return super().predict(
            never, batch, targets, dropout_key=dropout_key, embedding_delta=embedding_delta
        )


class _NeverMask(nn.Module):
    """Give the mask token no probability."""

    def __init__(self, head: nn.Module, mask_id: int) -> None:
        super().__init__()
        self.head = head
        self.mask_id = mask_id

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        is_mask = torch.arange(logits.shape[-1], device=logits.device) == self.mask_id
        return logits.masked_fill(is_mask, torch.finfo(logits.dtype).min)
