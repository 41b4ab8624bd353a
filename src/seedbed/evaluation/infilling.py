"""Ask an encoder-decoder how likely a word is that it was not shown, given the rest of the text.

The encoder reads a text with one word left out, a sentinel or a mask in its place; the decoder is given what stands before the
word in what it would write, and its probabilities of the word's tokens are taken, each given those before it. The end of the word
is not asked for, so that words of more tokens are not charged for an end of their own.

Source: spans and sentinels as in T5 (arXiv 1910.10683, section 3.1.4), text infilling as in BART (arXiv 1910.13461, section
2.2); summed over the words of a sentence, it is to an encoder-decoder what hiding whole words from left to right is to
a masked model (Kauf and Ivanova, arXiv 2305.10588).
Differs from the training of both: there is one gap, and it may be the first word. The marks of UL2 are not given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models.language_model import LanguageModel
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.decoder_side import decoder_inputs, encoder_side, start_id
from seedbed.objectives.sentinels import num_span_sentinels, span_sentinels
from seedbed.runtime import autocast
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["Gap", "Infilling", "gap_log_probabilities", "infilling_vocabulary"]

Infilling = Literal["infill_span", "infill_text"]


@dataclass(frozen=True, slots=True)
class Gap:
    """The tokens of a text, and which of them, from `start` to before `end`, are left out."""

    ids: Sequence[int]
    start: int
    end: int


def infilling_vocabulary(
    model: LanguageModel, tokenizer: Tokenizer, way: Infilling | None
) -> tuple[Vocabulary, Infilling]:
    """Return what the gaps of a text are filled with, and how.

    Args:
        model: an encoder-decoder.
        tokenizer: of the model.
        way: "infill_span": a sentinel stands for the word, and the decoder writes the word behind it; "infill_text": a mask
            stands for it, and the decoder writes the whole text. None: the first where the vocabulary has sentinels.

    Raises:
        IncompatibleError: the vocabulary has neither sentinels nor a mask, or not the one that was asked for.
    """
    vocabulary = replace(
        Vocabulary.of(tokenizer), decoder_start_id=model.config.special_ids.get("decoder_start")
    )
    start_id(vocabulary)
    chosen: Infilling = way or ("infill_span" if num_span_sentinels(vocabulary) else "infill_text")
    if chosen == "infill_span":
        span_sentinels(vocabulary, 1)
    elif vocabulary.mask_id is None:
        raise IncompatibleError(
            "an encoder-decoder is asked for words left out, and the vocabulary has nothing to stand for them:"
            " no sentinels, no mask token.",
            hint="use the model's own tokenizer",
        )
    return vocabulary, chosen


def gap_log_probabilities(
    model: LanguageModel,
    vocabulary: Vocabulary,
    gaps: Sequence[Gap],
    way: Infilling,
    compute_dtype: torch.dtype,
) -> list[float]:
    """Return the summed log-probability of the tokens of each gap.

    Args:
        model: an encoder-decoder with its head, on its device.
        vocabulary: of `infilling_vocabulary`.
        gaps: one row of the encoder and of the decoder each.
        way: of `infilling_vocabulary`.
        compute_dtype: number type of the matrix products.
    """
    device = next(model.parameters()).device
    read: list[list[int]] = []
    written: list[list[int]] = []
    places: list[range] = []  # in what is written, of the tokens asked for
    end = [vocabulary.separator_id]
    for gap in gaps:
        before, word, after = gap.ids[: gap.start], gap.ids[gap.start : gap.end], gap.ids[gap.end :]
        if way == "infill_span":
            (sentinel,) = span_sentinels(vocabulary, 1)
            read.append([*before, sentinel, *after, *end])
            written.append([sentinel, *word])
        else:
            frame = [] if vocabulary.cls_id is None else [vocabulary.cls_id]
            read.append([*frame, *before, vocabulary.mask_id or 0, *after, *end])
            written.append([*before, *word])
        places.append(range(len(written[-1]) - len(word), len(written[-1])))
    inputs, lengths = _padded(read, vocabulary.pad_id or 0)
    answers, depths = _padded(written, vocabulary.pad_id or 0)
    segments = encoder_side(lengths, inputs.shape[1])
    decoder_segments = encoder_side(depths, answers.shape[1])
    batch = Batch(
        input_ids=inputs,
        segment_ids=segments,
        has_padding=segments is not None or decoder_segments is not None,
        decoder_input_ids=decoder_inputs(answers, start_id(vocabulary)),
        decoder_segment_ids=decoder_segments,
    ).to(device)
    owners = torch.tensor([row for row, own in enumerate(places) for _ in own], device=device)
    at = torch.tensor(
        [row * answers.shape[1] + place for row, own in enumerate(places) for place in own], device=device
    )
    with torch.no_grad(), autocast(device.type, compute_dtype):
        logits = model.logits(model.trunk(batch, at=at).last).float()
    values = answers.to(device).reshape(-1)[at]
    found = -torch.nn.functional.cross_entropy(logits, values, reduction="none").double()
    sums = torch.zeros(len(gaps), dtype=torch.float64, device=device)
    return [float(x) for x in sums.index_add_(0, owners, found)]


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) int64 and the lengths (B,) of rows."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_id, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids, lengths
