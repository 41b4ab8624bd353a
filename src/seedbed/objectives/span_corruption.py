"""Span corruption: replace random spans by sentinels, write the spans that were there.

Source: T5 (C. Raffel et al., arXiv 1910.10683, section 3.1.4; the random segmentation of its released code): `noise_density`
of the tokens in spans of `mean_span_length` on average; a row begins with text and ends with a span; the encoder reads the
text with one sentinel for each span, the decoder writes sentinel, span, sentinel, span, ... and the end. UL2 (Y. Tay et al.,
arXiv 2205.05131, section 3.1) adds a mark for the kind of corruption, and one where the whole end of a row is the span.
Differs from them: rows are windows of the stream that fill the encoder exactly, so spans may hold a document's end; the
number of spans is bounded by the reserved tokens of the vocabulary, and rows are made shorter where it must be.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.decoder_side import decoder_inputs, encoder_side, start_id
from seedbed.objectives.sentinels import mark_id, num_span_sentinels, span_sentinels

__all__ = ["SpanCorruption", "SpanCorruptionConfig", "random_spans"]


class SpanCorruptionConfig(ObjectiveConfig):
    """Span corruption (T5), and the denoisers of UL2."""

    source: ClassVar = "T5 (Raffel et al., 2019, 1910.10683); UL2 (Tay et al., 2022, 2205.05131)"
    fits: ClassVar = ("encoder_decoder",)
    needs: ClassVar = "windows of text, reserved tokens as sentinels"
    default_model: ClassVar = "t5"
    use: ClassVar = "text in, text out: translation, summaries, answers; short targets make it cheap"

    name: Literal["span_corruption"] = Field("span_corruption", description="Span corruption.")
    noise_density: float = Field(
        0.15, gt=0.0, lt=1.0, description="Share of a row's tokens that are in spans."
    )
    mean_span_length: float = Field(3.0, ge=1.0, description="Tokens of a span, on average.")
    layout: Literal["spans", "suffix"] = Field(
        "spans",
        description="spans: anywhere. suffix: one span at the end of the row, a prefix language model (UL2's S).",
    )
    mark: Literal["ul2_short", "ul2_sequential", "ul2_extreme"] | None = Field(
        None,
        description="Reserved token before the encoder's text that names the kind of corruption (UL2). null: none.",
    )

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> SpanCorruption:
        """Make the objective; see `ObjectiveConfig.build`."""
        return SpanCorruption(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class SpanCorruption(Objective):
    """Write the spans a row lacks; one term, "span_corruption", over sentinels, spans and the end."""

    terms = ("span_corruption",)
    config: SpanCorruptionConfig

    def __init__(
        self,
        config: SpanCorruptionConfig,
        vocabulary: Vocabulary,
        *,
        row_length: int,
        is_segmented: bool,
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        if is_segmented:
            raise IncompatibleError(
                "objective span_corruption cannot keep documents apart: a span may reach over their border.",
                hint="data.is_segmented=false",
            )
        self._start_id = start_id(vocabulary)
        self._mark_id = None if config.mark is None else mark_id(vocabulary, config.mark)
        self._raw_length = self._longest()
        _, spans = self.sizes(self._raw_length)
        self._sentinels = torch.tensor(span_sentinels(vocabulary, spans))

    @property
    def raw_row_length(self) -> int:
        """The most tokens whose corrupted form fits the encoder, their spans the decoder, and their spans the sentinels."""
        return self._raw_length

    def sizes(self, length: int) -> tuple[int, int]:
        """Return how many tokens of a row of `length` are in spans, and in how many spans."""
        noise = min(max(round(length * self.config.noise_density), 1), length - 1)
        if self.config.layout == "suffix":
            return noise, 1
        return noise, max(1, min(round(noise / self.config.mean_span_length), noise, length - noise))

    def _longest(self) -> int:
        free = num_span_sentinels(self.vocabulary)
        extra = 1 if self._mark_id is None else 2
        best = 0
        for length in range(2, 16 * self.row_length):
            noise, spans = self.sizes(length)
            if max(length - noise + spans + extra, noise + spans + 1) > self.row_length or spans > free:
                break
            best = length
        if not best:
            raise IncompatibleError(
                f"objective span_corruption fits no text into rows of {self.row_length} tokens with {free} sentinels.",
                hint="a longer data.row_length, or a tokenizer with tokenizer.num_reserved=32",
            )
        return best

    def for_evaluation(self) -> SpanCorruption:
        """Return the same corruption without smoothing."""
        config = self.config.updated(label_smoothing=0.0, z_loss=0.0)
        return SpanCorruption(config, self.vocabulary, row_length=self.row_length, is_segmented=False)

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Cut spans out of the rows; shorter rows have fewer of them and are padded."""
        noise, spans = self.sizes(self._raw_length)
        extra = 1 if self._mark_id is None else 2
        width, depth = self._raw_length - noise + spans + extra, noise + spans + 1
        num_rows = rows.shape[0]
        pad = self.vocabulary.pad_id or 0
        inputs = torch.full((num_rows, width), pad)
        written = torch.full((num_rows, depth), pad)
        sizes = torch.zeros(num_rows, 2, dtype=torch.int64)
        first = draws.positions("span_corruption spans", self._raw_length)
        second = draws.positions("span_corruption gaps", self._raw_length)
        for length in sorted(set(rows.lengths.tolist())):  # one, but for the last row of a split
            own = torch.nonzero(rows.lengths == length)[:, 0]
            ids = rows.ids[own, :length]
            if length < 2:  # nothing to cut: everything is read, the end is written
                body, answer = ids, torch.full((len(own), 0), pad)
            else:
                body, answer = self._corrupted(ids, first[own], second[own])
            end = torch.full((len(own), 1), self.vocabulary.separator_id)
            mark = [] if self._mark_id is None else [torch.full_like(end, self._mark_id)]
            body, answer = torch.cat([*mark, body, end], dim=1), torch.cat([answer, end], dim=1)
            inputs[own, : body.shape[1]], written[own, : answer.shape[1]] = body, answer
            sizes[own] = torch.tensor([body.shape[1], answer.shape[1]])
        segments, decoder_segments = encoder_side(sizes[:, 0], width), encoder_side(sizes[:, 1], depth)
        is_padded = segments is not None or decoder_segments is not None
        batch = Batch(
            input_ids=inputs,
            segment_ids=segments,
            row_ids=rows.row_ids,
            has_padding=is_padded,
            decoder_input_ids=decoder_inputs(written, self._start_id),
            decoder_segment_ids=decoder_segments,
        )
        weights = None if decoder_segments is None else decoder_segments.float().reshape(-1)
        targets = Targets(
            at=torch.arange(num_rows * depth), values=written.reshape(-1), weights=weights, stream="decoder"
        )
        return batch, {"span_corruption": targets}

    def layout_nats(self, term: str, targets: Targets) -> float:
        """Return the nats it costs to say where the spans end: ln C(n - 1, s - 1) a row of n hidden tokens in s spans.

        All ways to cut n tokens into s spans are equally likely, and the encoder's text tells s and, by its length, n, but
        nothing of the cuts.
        """
        noise, spans = self.sizes(self._raw_length)
        written = targets.values.reshape(-1, noise + spans + 1)
        is_real = torch.ones_like(written) if targets.weights is None else targets.weights.reshape_as(written)
        pieces = torch.isin(written, self._sentinels).sum(dim=1).double()
        tokens = (is_real > 0).sum(dim=1) - pieces - 1
        has_any = pieces > 0
        n, s = tokens[has_any], pieces[has_any]
        return float((n.lgamma() - s.lgamma() - (n - s + 1).lgamma()).sum())

    def _corrupted(self, ids: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the encoder reads (B, L - n + s) and the decoder writes (B, n + s) of rows of one length."""
        num_rows, length = ids.shape
        noise, spans = self.sizes(length)
        if self.config.layout == "suffix":
            is_noise = (torch.arange(length) >= length - noise).expand(num_rows, -1)
        else:
            is_noise = random_spans(length, noise, spans, first, second)
        before = torch.zeros_like(is_noise)
        before[:, 1:] = is_noise[:, :-1]
        begins = is_noise & ~before  # the first token of a span
        number = begins.long().cumsum(dim=1) - 1
        sentinel = self._sentinels[number.clamp(min=0)]
        read = torch.where(begins, sentinel, ids)[~is_noise | begins].reshape(num_rows, -1)
        pairs = torch.stack([sentinel, ids], dim=2)  # a span's first token is written behind its sentinel
        written = pairs[torch.stack([begins, is_noise], dim=2)].reshape(num_rows, -1)
        return read, written


def random_spans(length: int, noise: int, spans: int, first: Tensor, second: Tensor) -> Tensor:
    """Return bool (B, length): `noise` tokens in `spans` spans, text first, every segmentation equally likely.

    As in T5, spans and the text between them are random segmentations of the two counts, independent of each other.

    Args:
        length: tokens of a row.
        noise: tokens in spans.
        spans: how many spans.
        first: (B, >= length) uniform int32, for the cuts between spans.
        second: the same, for those of the text.
    """
    sizes = torch.stack(
        [_segmentation(length - noise, spans, second), _segmentation(noise, spans, first)], dim=2
    ).reshape(first.shape[0], -1)  # (B, 2 s): text, span, text, span, ...
    ends = sizes.cumsum(dim=1)
    place = torch.arange(length).expand(first.shape[0], -1).contiguous()
    return torch.searchsorted(ends, place, right=True) % 2 == 1


def _segmentation(total: int, parts: int, draws: Tensor) -> Tensor:
    """Return (B, parts) positive sizes with this sum, every choice of cuts equally likely."""
    cuts = draws[:, : total - 1].argsort(dim=1, stable=True)[:, : parts - 1].sort(dim=1).values + 1
    edges = torch.cat(
        [torch.zeros_like(draws[:, :1]).long(), cuts, torch.full_like(draws[:, :1], total).long()], 1
    )
    return edges.diff(dim=1)
