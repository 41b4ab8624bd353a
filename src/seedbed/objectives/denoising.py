"""Denoising: shuffle a row's sentences, replace spans by one mask each, write the whole text again.

Source: BART (M. Lewis et al., arXiv 1910.13461, section 2.2): text infilling, 30 % of the tokens in spans whose lengths
follow a Poisson distribution of mean 3, each replaced by a single mask, a span of length 0 inserting one; sentences of a
document in random order.
Differs from it: the numbers of masked tokens and of spans in a row are exact, so lengths are Poisson given their sum (evenly
multinomial), and shapes are static; the decoder begins with the end token and writes the text and its end, without a begin
token between.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.store import DOCUMENT, SENTENCE, SPECIAL
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.decoder_side import decoder_inputs, encoder_side, start_id

__all__ = ["Denoising", "DenoisingConfig", "shuffled_sentences"]


class DenoisingConfig(ObjectiveConfig):
    """Denoising by infilling and sentence shuffling (BART)."""

    source: ClassVar = "BART (Lewis et al., 2019, 1910.13461)"
    fits: ClassVar = ("encoder_decoder",)
    needs: ClassVar = "windows of text with sentence marks, a mask token"
    default_model: ClassVar = "bart"
    use: ClassVar = "summaries and rewriting; every token is written, which costs more than span corruption"

    name: Literal["denoising"] = Field("denoising", description="Denoising.")
    mask_rate: float = Field(0.3, ge=0.0, lt=1.0, description="Share of a row's tokens in spans.")
    mean_span_length: float = Field(
        3.0, gt=0.0, description="Tokens of a span, on average; spans may be empty."
    )
    shuffle_sentences: bool = Field(True, description="Read the sentences of each document in random order.")
    shuffle_tokens: bool = Field(
        False,
        description="Read the tokens of a row in random order: T5's deshuffling (1910.10683, section 3.3.1), with mask_rate 0.",
    )

    @model_validator(mode="after")
    def _one_shuffle(self) -> DenoisingConfig:
        if self.shuffle_tokens and self.shuffle_sentences:
            raise ValueError("shuffle_tokens leaves no sentences to shuffle: set shuffle_sentences=false")
        return self

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> Denoising:
        """Make the objective; see `ObjectiveConfig.build`."""
        return Denoising(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class Denoising(Objective):
    """Write the text of a corrupted row; one term, "denoising", over all tokens and the end."""

    terms = ("denoising",)
    config: DenoisingConfig

    def __init__(
        self, config: DenoisingConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        if is_segmented:
            raise IncompatibleError(
                "objective denoising cannot keep documents apart: a span may reach over their border.",
                hint="data.is_segmented=false",
            )
        if vocabulary.mask_id is None:
            raise IncompatibleError(
                "objective denoising needs a mask token; the vocabulary has none.",
                hint="learn a tokenizer with seedbed (all have [MASK]), or choose objective.name=span_corruption",
            )
        self.mask_id = vocabulary.mask_id
        self._start_id = start_id(vocabulary)
        self._num_prefix = 0 if vocabulary.cls_id is None else 1

    @property
    def raw_row_length(self) -> int:
        """The most tokens that the decoder can write with their end, and the encoder read with its frame."""
        best = self.row_length - 1
        while (
            best > 1
            and best - self.sizes(best)[0] + self.sizes(best)[1] + 1 + self._num_prefix > self.row_length
        ):
            best -= 1
        return best

    def sizes(self, length: int) -> tuple[int, int]:
        """Return how many tokens of a row of `length` are in spans, and in how many."""
        masked = round(self.config.mask_rate * length)
        spans = round(masked / self.config.mean_span_length)
        # Empty spans lengthen what is read: never beyond the row.
        return masked, max(min(spans, masked), 1 if masked else 0)

    def for_evaluation(self) -> Denoising:
        """Return the paper's corruption."""
        return Denoising(DenoisingConfig(), self.vocabulary, row_length=self.row_length, is_segmented=False)

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Corrupt the rows; shorter rows are padded."""
        num_rows, longest = rows.shape
        masked, spans = self.sizes(longest)
        width, depth = longest - masked + spans + 1 + self._num_prefix, longest + 1
        pad = self.vocabulary.pad_id or 0
        inputs = torch.full((num_rows, width), pad)
        written = torch.full((num_rows, depth), pad)
        sizes = torch.zeros(num_rows, 2, dtype=torch.int64)
        text = rows.ids
        if self.config.shuffle_sentences:
            text = shuffled_sentences(rows, draws)
        elif self.config.shuffle_tokens:
            text = shuffled_tokens(rows, draws)
        slots = draws.positions("denoising slots", longest)
        owners = draws.positions("denoising lengths", longest)
        for length in sorted(set(rows.lengths.tolist())):  # one, but for the last row of a split
            own = torch.nonzero(rows.lengths == length)[:, 0]
            body = self._infilled(text[own, :length], slots[own], owners[own])
            end = torch.full((len(own), 1), self.vocabulary.separator_id)
            frame = [torch.full_like(end, self.vocabulary.cls_id or 0)] * self._num_prefix
            body, answer = (
                torch.cat([*frame, body, end], dim=1),
                torch.cat([rows.ids[own, :length], end], dim=1),
            )
            inputs[own, : body.shape[1]], written[own, : answer.shape[1]] = body, answer
            sizes[own] = torch.tensor([body.shape[1], answer.shape[1]])
        segments, decoder_segments = encoder_side(sizes[:, 0], width), encoder_side(sizes[:, 1], depth)
        batch = Batch(
            input_ids=inputs,
            segment_ids=segments,
            row_ids=rows.row_ids,
            has_padding=segments is not None or decoder_segments is not None,
            decoder_input_ids=decoder_inputs(written, self._start_id),
            decoder_segment_ids=decoder_segments,
        )
        weights = None if decoder_segments is None else decoder_segments.float().reshape(-1)
        targets = Targets(
            at=torch.arange(num_rows * depth), values=written.reshape(-1), weights=weights, stream="decoder"
        )
        return batch, {"denoising": targets}

    def _infilled(self, ids: Tensor, slots: Tensor, owners: Tensor) -> Tensor:
        """Return rows of one length with spans replaced by one mask each, (B, L - n + s)."""
        num_rows, length = ids.shape
        masked, spans = self.sizes(length)
        if not spans:
            return ids
        # Each masked token falls to a span by chance: sizes are Poisson given their sum.
        owner = ((owners[:, :masked].long() & 0xFFFFFFFF) * spans) >> 32
        sizes = torch.zeros(num_rows, spans, dtype=torch.int64).scatter_add_(1, owner, torch.ones_like(owner))
        # Where the masks stand among what is read, every choice equally likely.
        width = length - masked + spans
        place = slots[:, :width].argsort(dim=1, stable=True)[:, :spans].sort(dim=1).values
        jump = torch.zeros(num_rows, width, dtype=torch.int64).scatter(1, place, sizes - 1)
        source = torch.arange(width) + jump.cumsum(dim=1)  # behind a mask, text goes on after its span
        is_mask = torch.zeros(num_rows, width, dtype=torch.bool).scatter(1, place, True)
        read = ids.gather(1, source.clamp(min=0, max=length - 1))
        return torch.where(is_mask, self.mask_id, read)


def shuffled_tokens(rows: Rows, draws: Draws) -> Tensor:
    """Return ids (B, L) with the tokens of each row in the order of their draws; padding stays behind them."""
    length = rows.shape[1]
    key = draws.positions("denoising tokens", length).long()
    key = torch.where(torch.arange(length)[None] >= rows.lengths[:, None], 2**32, key)
    return rows.ids.gather(1, key.argsort(dim=1, stable=True))


def shuffled_sentences(rows: Rows, draws: Draws) -> Tensor:
    """Return ids (B, L) with the sentences of each document in the order of their draws.

    A document's separator stays behind it; a row's first and last sentence may be pieces of sentences.
    """
    length = rows.shape[1]
    position = torch.arange(length)
    is_end = (rows.marks & SPECIAL) != 0
    begins = ((rows.marks & (SENTENCE | DOCUMENT)) != 0) | is_end
    begins[:, 0] = True
    # A new document begins behind each separator.
    document = torch.zeros_like(rows.ids)
    document[:, 1:] = is_end[:, :-1].long().cumsum(dim=1)
    first = torch.where(begins, position, 0).cummax(dim=1).values
    draw = draws.positions("denoising sentences", length).long() + 2**31
    key = draw.gather(1, first)
    key = torch.where(is_end, 2**32, key)  # behind all sentences
    padding = position[None, :] >= rows.lengths[:, None]
    # One number that sorts by document, sentence and place: 2^12 documents, 2^33 draws, 2^17 places.
    order = (document << 50) | (key << 17) | first
    order = torch.where(padding, torch.iinfo(torch.int64).max, order)
    return rows.ids.gather(1, order.argsort(dim=1, stable=True))
