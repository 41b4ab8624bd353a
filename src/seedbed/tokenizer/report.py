"""Measure how a tokenizer treats text: pieces per word, unknowns, bytes per token, by language.

Numbers per language come from whole lines: a line is Chinese when at least three in ten of its characters are Han.
Words are split at white space in other lines and by rjieba in Chinese ones, punctuation not counted as words there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from seedbed.tokenizer.chinese import HAN_RUN, cut_words
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["measure"]

_HAN_SHARE: Final = 0.3
_BATCH_LINES: Final = 512


@dataclass(slots=True)
class _Tally:
    lines: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    single: int = 0

    def report(self) -> dict[str, Any]:
        """Return the ratios people compare."""
        tokens = max(1, self.tokens)
        return {
            "lines": self.lines,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "tokens_per_word": round(self.tokens / max(1, self.words), 4),
            "bytes_per_token": round(self.bytes / tokens, 4),
            "characters_per_token": round(self.characters / tokens, 4),
            "unknown_rate": round(self.unknown / tokens, 6),
            "single_character_rate": round(self.single / tokens, 4),
        }


def measure(tokenizer: Tokenizer, texts: Iterable[str], *, limit_bytes: int = 4 << 20) -> dict[str, Any]:
    """Report on the first `limit_bytes` of some texts (validation text, so that nothing was learned from it).

    Returns:
        JSON values: per language ("chinese", "other") and for all, lines, bytes, tokens, `tokens_per_word` (fertility),
        `bytes_per_token`, `characters_per_token`, `unknown_rate` (unknown tokens over tokens) and `single_character_rate`; and
        the longest tokens of the vocabulary.
    """
    tallies = {"chinese": _Tally(), "other": _Tally()}
    single = np.zeros(tokenizer.vocab_size, bool)
    for token_id in range(tokenizer.vocab_size):
        single[token_id] = token_id not in tokenizer.special_ids and len(_surface(tokenizer, token_id)) == 1
    batch: list[str] = []
    seen = 0
    for text in texts:
        for line in text.split("\n"):
            if line.strip():
                batch.append(line)
                seen += len(line.encode("utf-8"))
            if len(batch) >= _BATCH_LINES:
                _count(tokenizer, batch, tallies, single)
                batch = []
        if seen >= limit_bytes:
            break
    if batch:
        _count(tokenizer, batch, tallies, single)
    total = _Tally(*(sum(getattr(t, n) for t in tallies.values()) for n in _Tally.__slots__))
    surfaces = {_surface(tokenizer, i) for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids}
    return {
        "all": total.report(),
        **{name: tally.report() for name, tally in tallies.items() if tally.lines},
        "longest_tokens": sorted(surfaces, key=lambda t: (-len(t), t))[:10],
    }


def _count(
    tokenizer: Tokenizer, lines: list[str], tallies: dict[str, _Tally], single: np.ndarray[Any, Any]
) -> None:
    spans = tokenizer.encode_spans(lines)
    ends = np.cumsum(spans.counts)
    for line, end, count in zip(lines, ends, spans.counts, strict=True):
        ids = spans.ids[end - count : end]
        runs = HAN_RUN.findall(line)
        is_chinese = sum(map(len, runs)) >= _HAN_SHARE * len(line)
        tally = tallies["chinese" if is_chinese else "other"]
        tally.lines += 1
        tally.bytes += len(line.encode("utf-8"))
        tally.characters += len(line)
        tally.tokens += int(count)
        tally.words += (
            len(cut_words(runs)) + sum(map(_is_word, HAN_RUN.sub(" ", line).split()))
            if is_chinese
            else len(line.split())
        )
        tally.unknown += int((ids == tokenizer.unk_id).sum()) if tokenizer.unk_id is not None else 0
        tally.single += int(single[ids].sum())


def _is_word(piece: str) -> bool:
    return any(character.isalnum() for character in piece)


def _surface(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text a token stands for, without the marks that say where in a word it is."""
    return tokenizer.decode([token_id], skip_special=False).strip().removeprefix("##")
