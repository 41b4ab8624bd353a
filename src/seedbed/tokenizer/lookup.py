"""Encode texts by looking up their parts: only parts not met before go through the tokenizer.

Words repeat, so nearly all parts of a text are in the table, and numpy looks up and puts together a whole batch at a time. What
is in the table came from the tokenizer, so the ids are its own. Where texts may be cut is known in `cuts.py`; `parts.py` cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

from seedbed.tokenizer.chinese import IS_HAN
from seedbed.tokenizer.cuts import Cuts
from seedbed.tokenizer.parts import Parts, cut_texts
from seedbed.tokenizer.words import WordEncoder

__all__ = ["LookupEncoder", "LookupTokens"]

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_KEY_BYTES: Final = 15
"""A part of so many bytes is its own key: with their number they fill two 64-bit words. Longer ones go through a dict."""
_MAX_PARTS: Final = 1 << 18
_MAX_BYTES: Final = 1 << 23
_JOINED_CHARACTERS: Final = 1 << 12
_BEGINS, _ON_HAN = 1, 2

_Tokens = tuple[Int64s, Int32s, npt.NDArray[np.uint8], Int64s]


@dataclass(frozen=True, slots=True)
class LookupTokens:
    """Hold tokens and the parts they came from; see `spans.Tokens`."""

    ids: Int32s
    counts: Int64s
    begins: Bools
    on_han: Bools
    _parts: Parts
    _entries: Int32s
    _first: Int64s  # token of each part, and the number of tokens
    _ends: Int64s  # of each entry's tokens: entry << 32 | characters of the part

    def at(self, places: Int64s) -> Int64s:
        """Return the tokens at these places, see `spans.Tokens.at`."""
        parts = self._parts
        starts, ends = parts.characters(parts.starts), parts.characters(parts.ends)
        part = np.searchsorted(ends, places, side="right")
        tokens = self._first[part]
        # Most places begin a part; in the others, the part's tokens that end before them are passed.
        inside = np.flatnonzero(part < len(starts))
        inside = inside[places[inside] > starts[part[inside]]]
        entries = self._entries[part[inside]].astype(np.int64) << 32
        passed = np.searchsorted(self._ends, entries | (places[inside] - starts[part[inside]]), side="right")
        tokens[inside] += passed - np.searchsorted(self._ends, entries)
        text = np.searchsorted(parts.characters(parts.bounds[1:]), places)
        return tokens[tokens < self._first[parts.texts[text + 1]]]


class LookupEncoder:
    """Encode texts with a table of parts; may be called from several threads at once.

    The table is bounded: when it is full another one is begun, which changes speed and nothing else.

    Args:
        backend: encodes what the table lacks; must read special tokens as plain text.
        cuts: where texts may be cut.
        words: encodes plain words instead; None: the backend does.
    """

    def __init__(self, backend: Backend, cuts: Cuts, words: WordEncoder | None = None) -> None:
        self._backend = backend
        self._cuts = cuts
        self._words = words
        self._table = _Table(backend, cuts, words)

    def encode(self, texts: Sequence[str]) -> LookupTokens:
        """Return the tokens of several texts.

        Takes about 60 times the size of the texts in memory while it runs; give it some hundred thousand characters at a time.
        """
        if self._table.is_full:
            self._table = _Table(self._backend, self._cuts, self._words)
        table = self._table
        parts = cut_texts(texts, self._cuts)
        entries = table.look_up(parts)
        counts = table.counts.values[entries]
        first = np.zeros(len(entries) + 1, np.int64)
        np.cumsum(counts, out=first[1:])
        at = np.repeat(table.offsets.values[entries] - first[:-1].astype(np.int32), counts)
        at += np.arange(len(at), dtype=np.int32)
        flags = table.flags.values[at]
        begins = (flags & _BEGINS).view(np.bool_)
        if parts.is_inner is not None:
            begins[first[:-1][parts.is_inner]] = False
        on_han = (flags & _ON_HAN) != 0
        ids, sizes = table.ids.values[at], np.diff(first[parts.texts])
        return LookupTokens(ids, sizes, begins, on_han, parts, entries, first, table.ends.values)


class _Column:
    """Hold a growing array; what was handed out does not change."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._room = np.empty(1024, dtype)
        self.values: npt.NDArray[Any] = self._room[:0]

    def extend(self, values: npt.NDArray[Any]) -> None:
        begin, end = len(self.values), len(self.values) + len(values)
        if end > len(self._room):
            room = np.empty(2 * end, self._room.dtype)
            room[:begin] = self.values
            self._room = room
        self._room[begin:end] = values
        self.values = self._room[:end]


class _Table:
    """Know the tokens of parts, by an open hash table over their bytes.

    Entries are only ever added, and are found when all about them is written, so that reading needs no lock.
    """

    def __init__(self, backend: Backend, cuts: Cuts, words: WordEncoder | None) -> None:
        self._backend = backend
        self._cuts = cuts
        self._words = words
        self._lock = Lock()
        self._slots = np.full(1 << 12, -1, np.int32)  # entries; at least half are free
        self._keys = _Column(np.uint64), _Column(np.uint64)
        self._long: dict[bytes, int] = {}
        self._num_bytes = 0
        # By entry: its first token, its tokens. By token: id, flags, `entry << 32 | end` in characters of the part.
        self.offsets, self.counts = _Column(np.int32), _Column(np.int32)
        self.ids, self.flags, self.ends = _Column(np.int32), _Column(np.uint8), _Column(np.int64)

    @property
    def is_full(self) -> bool:
        """Say whether another table should be begun."""
        return len(self.counts.values) > _MAX_PARTS or self._num_bytes > _MAX_BYTES

    def look_up(self, parts: Parts) -> Int32s:
        """Return the entries of all parts; those missing are encoded."""
        keys = _keys(parts)
        entries = self._find(keys)
        long = np.flatnonzero(parts.ends - parts.starts > _KEY_BYTES)
        names = parts.names(long)
        entries[long] = [self._long.get(name, -1) for name in names]
        missing = np.flatnonzero(entries < 0)
        if len(missing):
            self._learn(parts, missing, keys)
            entries[missing] = self._find(keys[:, missing])
            entries[long] = [self._long[name] for name in names]
        return entries

    def _find(self, keys: UInt64s) -> Int32s:
        """Return the entries of keys, -1 where there is none, as for all long parts."""
        all_slots = self._slots
        if not len(self._keys[1].values):
            return np.full(keys.shape[1], -1, np.int32)
        slots = _hashes(keys) & (len(all_slots) - 1)
        entries: Int32s = all_slots[slots]
        known = self._keys[0].values, self._keys[1].values  # read after the slots: holds all that those name
        is_other = (known[0][entries] != keys[0]) | (known[1][entries] != keys[1])
        pending = np.flatnonzero(is_other & (entries >= 0))
        while len(pending):
            slots[pending] = (slots[pending] + 1) & (len(all_slots) - 1)
            found = all_slots[slots[pending]]
            known = self._keys[0].values, self._keys[1].values
            entries[pending] = found
            is_other = (known[0][found] != keys[0, pending]) | (known[1][found] != keys[1, pending])
            pending = pending[is_other & (found >= 0)]
        return entries

    def _learn(self, parts: Parts, missing: Int64s, keys: UInt64s) -> None:
        """Encode the parts that are missing, each once, and add them.

        Two threads may add the same part, since neither waits while the other encodes; that costs a little room.
        """
        found: dict[bytes, int] = {}
        for name, part in zip(parts.names(missing), missing.tolist(), strict=True):
            found.setdefault(name, part)
        names = list(found)
        places = np.fromiter(found.values(), np.int64, len(found))
        of_token, ids, flags, ends = self._encode(names, parts, places)
        counts = np.bincount(of_token, minlength=len(names))
        is_long = (parts.ends - parts.starts)[places] > _KEY_BYTES
        with self._lock:
            entries = len(self.counts.values) + np.arange(len(names))
            self.ids.extend(ids)
            self.flags.extend(flags)
            self.ends.extend(entries[of_token] << 32 | ends)
            self.offsets.extend(len(self.ids.values) - len(ids) + np.cumsum(counts) - counts)
            self.counts.extend(counts)
            for column, words in zip(self._keys, keys, strict=True):
                column.extend(words[places])
            self._num_bytes += sum(map(len, names))
            self._long.update((names[i], int(entries[i])) for i in np.flatnonzero(is_long).tolist())
            self._insert(entries[~is_long])

    def _insert(self, entries: Int64s) -> None:
        """Make entries found by their keys."""
        slots = self._slots
        if 2 * len(self.counts.values) > len(slots):
            slots = np.full(4 * (1 << len(self.counts.values).bit_length()), -1, np.int32)
            entries = np.concatenate([self._slots[self._slots >= 0], entries])
        keys = np.stack([column.values[entries] for column in self._keys])
        at = _hashes(keys) & (len(slots) - 1)
        while len(entries):
            free = slots[at] < 0
            slots[at[free]] = entries[free]
            is_out = slots[at] != entries
            at, entries = (at[is_out] + 1) & (len(slots) - 1), entries[is_out]
        self._slots = slots

    def _encode(self, names: list[bytes], parts: Parts, places: Int64s) -> _Tokens:
        """Encode parts, words by their own encoder where there is one; see `_encode_by_backend`."""
        if self._words is None:
            return self._encode_by_backend(
                [name.decode("utf-8") for name in names], parts.are_plain(places, self._cuts)
            )
        found = self._words.encode(names, parts, places)
        flags = found.begins * np.uint8(_BEGINS) | found.on_han * np.uint8(_ON_HAN)
        left = np.flatnonzero(~found.is_done)
        if not len(left):
            return found.words, found.ids, flags, found.ends
        rest = self._encode_by_backend(
            [names[i].decode("utf-8") for i in left.tolist()], parts.are_plain(places[left], self._cuts)
        )
        of_token = np.concatenate([found.words, left[rest[0]]])
        order = np.argsort(of_token, kind="stable")

        def merged(mine: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([mine, other])[order]

        return (
            of_token[order],
            merged(found.ids, rest[1]),
            merged(flags, rest[2]),
            merged(found.ends, rest[3]),
        )

    def _encode_by_backend(self, texts: list[str], are_plain: Bools) -> _Tokens:
        """Encode parts by the tokenizer.

        Returns:
            For each token the number of its part, its id, its flags, and its end within the part, in the order of the parts.
        """
        # Many together, since a call for each would cost more than the words themselves.
        groups: list[list[str]] = [[]]
        size = 0
        for text, is_plain in zip(texts, are_plain.tolist(), strict=True):
            if not is_plain or size >= _JOINED_CHARACTERS:
                groups.append([])
                size = 0
            groups[-1].append(text)
            size += len(text) if is_plain else _JOINED_CHARACTERS
        groups = [group for group in groups if group]
        joined = [self._cuts.joiner.join(group) for group in groups]
        encodings = self._backend.encode_batch(joined, add_special_tokens=False)
        numbers = np.fromiter(map(len, encodings), np.int64, len(encodings))
        size = int(numbers.sum())
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, size)
        words = np.fromiter(chain.from_iterable(e.word_ids for e in encodings), np.int64, size)
        offsets = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        spans = np.fromiter(offsets, np.int64, 2 * size).reshape(size, 2)
        # Places in all groups joined by one character, as the parts in each are
        lengths = np.fromiter(map(len, joined), np.int64, len(joined))
        spans += np.repeat(np.cumsum(lengths + 1) - lengths - 1, numbers)[:, None]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        starts = np.cumsum(lengths + 1) - lengths - 1
        part = np.searchsorted(starts, spans[:, 0], side="right") - 1
        begins = np.ones(size, bool)
        begins[1:] = (words[1:] != words[:-1]) | (part[1:] != part[:-1])
        codes = np.frombuffer("\n".join(texts).encode("utf-32-le"), "<u4")
        flags = begins * np.uint8(_BEGINS) | IS_HAN[codes[spans[:, 0]]] * np.uint8(_ON_HAN)
        kept = np.flatnonzero(spans[:, 0] < starts[part] + lengths[part])  # not the joiners
        part = part[kept]
        return part, ids[kept], flags[kept], spans[kept, 1] - starts[part]


def _keys(parts: Parts) -> UInt64s:
    """Return (2, p) words that tell short parts apart; the last byte is the length, 16 for all longer ones."""
    lengths = np.minimum(parts.ends - parts.starts, _KEY_BYTES + 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(parts.data, np.uint8), 16)
    words = windows[parts.starts].view("<u8")
    keys = np.empty((2, len(lengths)), np.uint64)
    np.bitwise_and(words[:, 0], _MASKS[0][lengths], out=keys[0])
    np.bitwise_and(words[:, 1], _MASKS[1][lengths], out=keys[1])
    keys[1] |= lengths.view(np.uint64) << np.uint64(56)
    return keys


def _hashes(keys: UInt64s) -> Int64s:
    """Mix the bits of both words, so that the lowest ones depend on all; unsigned numbers wrap around."""
    mixed = keys[0] * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed ^= keys[1] * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed >>= np.uint64(34)
    hashes: Int64s = mixed.view(np.int64)
    return hashes


def _masks() -> UInt64s:
    """Return (2, 17) words that keep 0 .. 15 bytes of a key; a longer part keeps 15."""
    table = np.zeros((_KEY_BYTES + 2, 16), np.uint8)
    for length in range(_KEY_BYTES + 2):
        table[length, : min(length, _KEY_BYTES)] = 0xFF
    return np.ascontiguousarray(table.view("<u8").T)


_MASKS: Final = _masks()
