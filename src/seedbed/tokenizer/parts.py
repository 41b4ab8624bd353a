"""Cut a batch of texts into parts that are encoded alone, with numpy, by the rules of `cuts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from seedbed.tokenizer.cuts import Cuts

__all__ = ["PADDING", "Parts", "cut_texts"]

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]

PADDING: Final = 16
"""Bytes behind the last text, so that what is read at once may reach past the end."""


@dataclass(frozen=True)
class Parts:
    """Hold the parts of a batch; blanks that the tokenizer drops belong to none.

    Attributes:
        data: UTF-8 of all texts, a newline before and behind each, and padding.
        starts, ends: (p,) int64 bytes of `data`.
        is_inner: (p,) bool: goes on with the pre-token of the part before it; None: no part does.
        bounds: (len(texts) + 1,) int64 the newlines around the texts.
        texts: (len(texts) + 1,) int64 first part of each text, and the number of parts.
        classes: (len(data),) uint8 class of each byte.
        has_wide: whether there are characters beyond ASCII.
    """

    data: bytes
    starts: Int64s
    ends: Int64s
    is_inner: Bools | None
    bounds: Int64s
    texts: Int64s
    classes: UInt8s
    has_wide: bool

    def names(self, parts: Int64s) -> list[bytes]:
        """Return the bytes of some parts."""
        spans = zip(self.starts[parts].tolist(), self.ends[parts].tolist(), strict=True)
        return [self.data[start:end] for start, end in spans]

    def are_plain(self, parts: Int64s, cuts: Cuts) -> Bools:
        """Say which of some parts stay what they are with the joiner beside them."""
        starts = self.starts[parts]
        first = self.classes[starts]
        first = np.where(first == cuts.blank, self.classes[starts + 1], first)
        return cuts.is_plain[first] & cuts.is_plain[self.classes[self.ends[parts] - 1]]

    def characters(self, places: Int64s) -> Int64s:
        """Return which character of all texts, joined by one character, begins at these places in `data`."""
        return self._characters_before[places - 1] - 1 if self.has_wide else places - 1

    @cached_property
    def _characters_before(self) -> Int64s:
        return np.cumsum(np.frombuffer(self.data, np.int8) >= -64)  # all but bytes that continue a character


def cut_texts(texts: Sequence[str], cuts: Cuts) -> Parts:
    """Cut texts into parts.

    Takes about 20 times the size of the texts in memory.
    """
    encoded = [text.encode("utf-8") for text in texts]
    data = b"\n" + b"\n".join(encoded) + b"\n" + bytes(PADDING)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    bounds = np.concatenate([[0], np.cumsum(lengths + 1)])
    buffer = np.frombuffer(data, np.uint8)
    classes = cuts.bytes[buffer]
    wide = np.flatnonzero(buffer >= 0xC0)
    inner = _classify(buffer, wide, classes, cuts)
    classes[bounds] = cuts.dropped
    sides = classes[:-PADDING]
    pairs = sides[:-1] << 4
    pairs |= sides[1:]
    borders = cuts.rule[pairs]
    borders[inner - 1] = 3
    starts = np.flatnonzero((borders & 1).view(np.bool_)) + 1
    ends = np.flatnonzero((borders & 2).view(np.bool_)) + 1
    is_inner = None
    if len(inner):
        flags = np.zeros(len(buffer), np.bool_)
        flags[inner] = True
        is_inner = flags[starts]
    return Parts(
        data, starts, ends, is_inner, bounds, np.searchsorted(starts, bounds), classes, len(wide) > 0
    )


def _classify(buffer: UInt8s, wide: Int64s, classes: UInt8s, cuts: Cuts) -> Int64s:
    """Set the classes of the characters beyond ASCII, which begin at `wide`.

    Returns:
        The places where a run of Han characters is cut inside.
    """
    codes = np.empty(len(wide), np.uint32)
    first = buffer[wide]
    for width, is_so in ((2, first < 0xE0), (3, (first >= 0xE0) & (first < 0xF0)), (4, first >= 0xF0)):
        at = wide[is_so]
        code = buffer[at].astype(np.uint32) & (0x7F >> width)
        for offset in range(1, width):
            code <<= 6
            code |= buffer[at + offset] & 0x3F
        codes[is_so] = code
        kind = cuts.characters[code]
        classes[at] = kind
        kind += 1  # of the bytes that continue it
        for offset in range(1, width):
            classes[at + offset] = kind
    if cuts.pairs is None:
        return np.empty(0, np.int64)
    is_han = classes[wide] == cuts.han
    is_pair = is_han[1:] & is_han[:-1]
    # Nothing lies between: the second begins where the first, of three bytes or four, ends.
    is_pair &= wide[1:] - wide[:-1] == np.where(first[:-1] >= 0xF0, 4, 3)
    at = np.flatnonzero(is_pair)
    joins = cuts.pairs.may_join(codes[at], codes[at + 1])
    return wide[at[~joins] + 1]
