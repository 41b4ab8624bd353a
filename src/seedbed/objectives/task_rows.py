"""Describe rows of examples to a model: the special tokens around one text or two, and padding that is never attended.

Encoders read `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, with token types 0 and 1 where they have them; decoders a text
begun by the separator, `[SEP] a` or `[SEP] a [SEP] b`: what `Tokenizer.save` has transformers put around a text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.data.views import Rows
from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Vocabulary

__all__ = ["Frame", "frame_of", "frame_rows", "mean_features"]


@dataclass(frozen=True, slots=True)
class Frame:
    """Say what stands around texts; None: nothing.

    Attributes:
        begin: id before the first text.
        between: id between two texts.
        end: id after the last text.
        pad: id where nothing stands; never attended.
        is_causal: rows are read to the left only.
    """

    begin: int | None
    between: int | None
    end: int | None
    pad: int
    is_causal: bool

    def num_special(self, *, is_pair: bool) -> int:
        """Return how many tokens the frame adds to a row."""
        return sum(x is not None for x in (self.begin, self.between if is_pair else None, self.end))


def frame_of(vocabulary: Vocabulary, *, is_causal: bool) -> Frame:
    """Return what a model of this kind reads around texts.

    Raises:
        IncompatibleError: an encoder's vocabulary has no [CLS] or no [SEP].
    """
    pad = vocabulary.pad_id or 0
    if is_causal:
        separator = vocabulary.separator_id
        return Frame(separator, separator, None, pad, is_causal=True)
    if vocabulary.cls_id is None or vocabulary.sep_id is None:
        raise IncompatibleError(
            "an encoder needs [CLS] and [SEP] around texts; the vocabulary lacks one of them.",
            hint="use the tokenizer the model was trained with",
        )
    return Frame(vocabulary.cls_id, vocabulary.sep_id, vocabulary.sep_id, pad, is_causal=False)


def frame_rows(rows: Rows, frame: Frame) -> tuple[Batch, Tensor]:
    """Put the frame around rows of examples.

    Args:
        rows: with `first_lengths` where they hold two texts.
        frame: what to put around.

    Returns:
        The batch, padded to its longest row, with `token_type_ids` for pairs of encoders (0 up to the [SEP] after the first text,
        1 after it); and the number of tokens of each row (B,) int64, special ones included.
    """
    count, length = rows.shape
    is_pair = rows.first_lengths is not None
    total = rows.lengths + frame.num_special(is_pair=is_pair)
    width = length + frame.num_special(is_pair=is_pair)
    begin = 0 if frame.begin is None else 1
    first = rows.lengths if rows.first_lengths is None else rows.first_lengths
    column = torch.arange(width)[None, :]
    has_between = is_pair and frame.between is not None

    # Where each token of the row goes: all move by the begin token, those of the second text by one more.
    source = torch.arange(length)[None, :].expand(count, length)
    place = source + begin + ((source >= first[:, None]) if has_between else 0)
    ids = torch.full(
        (count, width + 1), frame.pad, dtype=torch.int64
    )  # one more column takes what is padding
    place = torch.where(source < rows.lengths[:, None], place, width)
    ids.scatter_(1, place, rows.ids)
    ids = ids[:, :width]
    if frame.begin is not None:
        ids[:, 0] = frame.begin
    if has_between:
        ids[torch.arange(count), begin + first] = frame.between or 0
    if frame.end is not None:
        ids[torch.arange(count), total - 1] = frame.end
    segments = (column < total[:, None]).to(torch.int32)
    ids = torch.where(segments > 0, ids, frame.pad)
    types = None
    if is_pair and not frame.is_causal:
        types = ((column > (begin + first)[:, None]) & (segments > 0)).to(torch.int64)
    batch = Batch(
        input_ids=ids,
        segment_ids=None if rows.is_full else segments,
        token_type_ids=types,
        row_ids=rows.row_ids,
        attention="causal" if frame.is_causal else "full",
        has_padding=not rows.is_full,
    )
    return batch, total


def mean_features(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the mean hidden state (B, D) of each row's tokens, special ones included, padding not."""
    if batch.segment_ids is None:
        return hidden.mean(dim=1)
    weight = (batch.segment_ids > 0).to(hidden.dtype)
    return (hidden * weight[:, :, None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)
