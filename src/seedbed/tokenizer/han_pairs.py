"""Know which Han characters a token of a byte-level BPE may hold side by side.

Between two others no merge can ever join them, so a run of Han characters may be cut there: the merges on one side do not
depend on the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["HanPairs", "byte_alphabet", "han_pairs"]


@dataclass(frozen=True, slots=True)
class HanPairs:
    """Say which two Han characters a token may hold side by side.

    Attributes:
        left, right: (0x110000,) int32 numbers of characters at the left and the right of such a pair; 0: in none.
        joins: packed bits, `left * width + right`.
        width: one more than the largest number in `right`.
    """

    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    joins: npt.NDArray[np.uint8]
    width: int

    def may_join(self, left: npt.NDArray[np.uint32], right: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Say for pairs of code points whether some token may hold both."""
        at = self.left[left].astype(np.int64) * self.width + self.right[right]
        bits = self.joins[at >> 3] >> (at & 7).astype(np.uint8) & 1
        return np.asarray(bits, np.bool_)


def byte_alphabet() -> dict[str, int]:
    """Return the byte each character of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def han_pairs(vocab: dict[str, int], alphabet: dict[str, int]) -> HanPairs:
    """Find all pairs of Han characters that some token holds side by side.

    A token may hold a part of a character only; its whole neighbour is then taken to join with anything.
    """
    pairs: set[tuple[int, int]] = set()
    joins_left: set[int] = set()  # characters that may join with whatever follows
    joins_right: set[int] = set()
    for token in vocab:
        try:
            data = bytes([alphabet[character] for character in token])
        except KeyError:
            continue  # a special token, which no text gives
        for left, right in _borders(data):
            before, after = _whole(left), _whole(right)
            if before and after:
                pairs.add((ord(before), ord(after)))
            elif after:
                joins_right.add(ord(after))
            elif before:
                joins_left.add(ord(before))
            else:  # parts on both sides: all characters that begin like the right one
                joins_right.update(_beginning_with(right))
    lefts = sorted({a for a, _ in pairs} | joins_left)
    rights = sorted({b for _, b in pairs} | joins_right)
    numbers_left, numbers_right = np.zeros(0x110000, np.int32), np.zeros(0x110000, np.int32)
    numbers_left[lefts] = np.arange(1, len(lefts) + 1)
    numbers_right[rights] = np.arange(1, len(rights) + 1)
    table = np.zeros((len(lefts) + 1, len(rights) + 1), np.bool_)
    for a, b in pairs:
        table[numbers_left[a], numbers_right[b]] = True
    table[numbers_left[sorted(joins_left)]] = True
    table[:, numbers_right[sorted(joins_right)]] = True
    joins = np.packbits(table.ravel(), bitorder="little")
    return HanPairs(numbers_left, numbers_right, joins, table.shape[1])


def _borders(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (part of a) character on both sides of each place in a token where a character begins, ASCII left out."""
    for at in range(1, len(data)):
        if data[at] < 0xC0 or data[at - 1] < 0x80:
            continue
        begin = at - 1
        while begin > 0 and 0x80 <= data[begin] < 0xC0:
            begin -= 1
        end = at + 1
        while end < len(data) and 0x80 <= data[end] < 0xC0:
            end += 1
        yield data[begin:at], data[at:end]


def _whole(data: bytes) -> str:
    """Return the Han character these bytes are, or nothing where they are a part of one or something else."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return text


def _beginning_with(data: bytes) -> range:
    """Return the code points whose UTF-8 has three or four bytes and begins so."""
    width = 4 if data[0] >= 0xF0 else 3
    known = data[0] & (0x7F >> width)
    for byte in data[1:]:
        known = known << 6 | byte & 0x3F
    shift = 6 * (width - len(data))
    return range(known << shift, (known + 1) << shift)
