"""Encode plain words with tokie, where it is installed: the same ids as the tokenizer's, many times as fast.

`lookup.py` gives each word to an encoder once. tokie says ids only; where tokens end, and that they begin a word, is known for
words of one kind of characters, from the lengths of their tokens. All other parts, and those whose tokens do not add up, are
left to the tokenizer. `encoder.py` compares the outcome with the tokenizer's and goes without tokie where it differs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

from seedbed.tokenizer.cuts import Cuts
from seedbed.tokenizer.parts import Parts

__all__ = ["WordEncoder", "WordTokens", "open_words"]

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WordTokens:
    """Hold the tokens of words.

    Attributes:
        is_done: (words,) bool; the others have no tokens here.
        words: (tokens,) int64 which word.
        ids: (tokens,) int32.
        begins: (tokens,) bool first token of its word.
        on_han: (tokens,) bool on Han characters.
        ends: (tokens,) int64 in characters of the word.
    """

    is_done: Bools
    words: Int64s
    ids: Int32s
    begins: Bools
    on_han: Bools
    ends: Int64s


class WordEncoder:
    """Encode words of letters, of digits, or (BPE) of Han characters, with or without a blank before them.

    Args:
        encoder: a tokie tokenizer.
        lengths: (V,) int64 bytes of text a token stands for; -1 where that is not known.
        cuts: the tokenizer's.
    """

    def __init__(self, encoder: Any, lengths: Int64s, cuts: Cuts) -> None:
        self._encoder = encoder
        self._lengths = lengths
        self._cuts = cuts

    def encode(self, names: Sequence[bytes], parts: Parts, places: Int64s) -> WordTokens:
        """Encode parts, given by their bytes and by their places among `parts`."""
        is_word, is_han = self._kinds(parts, places)
        chosen = np.flatnonzero(is_word)
        given = [names[i] for i in chosen.tolist()]
        ids, counts = self._encoder.encode_batch_flat(
            [name.decode("utf-8") for name in given], add_special_tokens=False
        )
        counts = counts.astype(np.int64)
        sizes = np.fromiter(map(len, given), np.int64, len(given))
        lengths = self._lengths[ids]
        last = np.cumsum(counts)
        through = np.concatenate([[0], np.cumsum(lengths)])
        ends = through[1:] - np.repeat(through[last - counts], counts)
        unknown = np.concatenate([[0], np.cumsum(lengths < 0)])
        adds_up = (through[last] - through[last - counts] == sizes) & (
            unknown[last] == unknown[last - counts]
        )
        is_kept = np.repeat(adds_up & (counts > 0), counts)
        words = np.repeat(np.arange(len(given)), counts)[is_kept]
        # In characters: those that begin before the end, so that a token that ends within one reaches to its end.
        begun = np.concatenate([[0], np.cumsum(np.frombuffer(b"".join(given), np.int8) >= -64)])
        starts = np.cumsum(sizes) - sizes
        in_characters = begun[starts[words] + ends[is_kept]] - begun[starts[words]]
        begins = np.zeros(len(ids), np.bool_)
        begins[(last - counts)[counts > 0]] = True
        is_done = np.zeros(len(names), np.bool_)
        is_done[chosen] = adds_up & (counts > 0)
        return WordTokens(
            is_done,
            chosen[words],
            ids[is_kept].astype(np.int32),
            begins[is_kept],
            is_han[chosen[words]],
            in_characters,
        )

    def _kinds(self, parts: Parts, places: Int64s) -> tuple[Bools, Bools]:
        """Say which parts are words of one kind of characters, and which of these are Han."""
        cuts = self._cuts
        starts, ends = parts.starts[places], parts.ends[places]
        starts = starts + ((parts.classes[starts] == cuts.blank) & (ends - starts > 1))
        at = np.stack([starts, ends], axis=1).reshape(-1)
        low = np.minimum.reduceat(parts.classes, at)[::2]
        high = np.maximum.reduceat(parts.classes, at)[::2]
        is_han = (low == cuts.han) & (high <= cuts.han + 1) & (starts == parts.starts[places])
        return ((low == high) & cuts.is_ascii_word[low]) | is_han, is_han


def open_words(backend: Backend, cuts: Cuts) -> WordEncoder | None:
    """Return the encoder of words for a tokenizer; None where tokie is not installed, or does not take it."""
    try:
        import tokie
    except ImportError:
        return None
    parts = json.loads(backend.to_str())
    model = parts["model"]
    # tokie would read special tokens in a text; a word is none.
    bare = json.dumps(parts | {"added_tokens": [], "post_processor": None})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(bare, encoding="utf-8")
        try:
            encoder = tokie.Tokenizer.from_json(str(path))
        except (tokie.TokieError, ValueError, OSError):
            return None
    lengths = np.full(max(model["vocab"].values()) + 1, -1, np.int64)
    prefix = model.get("continuing_subword_prefix") or ""
    for token, number in model["vocab"].items():
        if token != model.get("unk_token"):
            text = token.removeprefix(prefix) if prefix else token
            # Byte-level BPE writes a byte as a character.
            lengths[number] = len(text) if model["type"] == "BPE" else len(text.encode("utf-8"))
    return WordEncoder(encoder, lengths, cuts)
