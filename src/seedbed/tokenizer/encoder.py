"""Choose how the texts of a store are encoded, and watch that the fast way gives what the tokenizer gives.

The fast way is `lookup.LookupEncoder`. It is the tokenizer's equal by the rules of `cuts.py`; should a rule be wrong for some
tokenizer or text, a comparison at the start, or one of those made all along, finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from seedbed.tokenizer.cuts import Cuts, find_cuts
from seedbed.tokenizer.lookup import LookupEncoder
from seedbed.tokenizer.spans import Tokens
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.words import open_words

__all__ = ["LookupDiffersError", "TextEncoder"]

_COMPARED_CHARACTERS: Final = 1024
"""Of each batch, a quarter of a million characters in the store: about 4 in 1,000, and a twentieth of the time."""
_COMPARED_AT_FIRST: Final = 1 << 16
_PROBED_TOKENS: Final = 2000

_PROBES: Final = (
    "Hello, world!  don't you'll WE'RE 'tis rock'n'roll 's 'x ' '' '",
    "[MASK] [SEP]x[PAD] <s></s> <mask> <|endoftext|> ##ing @@",
    "天下大势，分久必合。GDP增长3.5％　全角 ＡＢＣ中 文 中文's 𠀀𠀁中豈㐀",
    "e\u0301 n\u0303中\u0301x !\u0301 \u0301 a\u0323\u0307 İstanbul ΣΑΣ ß ﬁ ﬃ ① Ⅻ ㎏",
    "👩\u200d🚀👍🏽🇫🇷 ☺\ufe0f中\ufe0f a\u200bb a\u200db \ufeff \u00a0x\u3000y \u2028z a\x00b\x01 \x85 \ufffd",
    "مرحبا بالعالم שלום ภาษาไทย 한국어 각 हिन्दी ひらがな カタカナ ガ Ελληνικά Русский",
    "  two  blanks \t tab \r\n lines\n\n end \n",
    "x" * 101 + " " + "x" * 70_000,
    "",
)


class LookupDiffersError(Exception):
    """Say that looking up gave other tokens than the tokenizer; caught by who began to look up."""


class TextEncoder:
    """Encode texts part by part where that gives the tokenizer's own tokens, else by the tokenizer.

    Args:
        tokenizer: decides what tokens are.
        lookup: False leaves all to the tokenizer.
        reason: why, for the report.

    Attributes:
        num_threads: how many threads may call `encode` at a time with profit.
        reason: why the tokenizer encodes all; None where parts are looked up.
    """

    def __init__(self, tokenizer: Tokenizer, *, lookup: bool = True, reason: str = "as asked for") -> None:
        self._tokenizer = tokenizer
        self._lookup: LookupEncoder | None = None
        self._budget = _COMPARED_AT_FIRST
        self.num_compared = 0
        self._has_words = False
        self.reason: str | None = reason
        if lookup:
            self.reason = self._prepare()
        # The tokenizer has threads of its own; numpy leaves the second core free for more than half of the time.
        self.num_threads = 1 if self._lookup is None else 2

    def _prepare(self) -> str | None:
        """Make the fast encoder, or return why there is none."""
        cuts = find_cuts(self._tokenizer.plain_backend)
        if isinstance(cuts, str):
            return cuts
        backend = self._tokenizer.plain_backend
        probes = _probes(cuts, self._tokenizer)
        words = open_words(backend, cuts)
        # Where tokie differs, looking up may still do without it.
        differs_on = ""
        for helper in dict.fromkeys((words, None)):
            encoder = LookupEncoder(backend, cuts, helper)
            at = self._difference(encoder, probes)
            if at is None:
                self._lookup = encoder
                self._has_words = helper is not None
                return None
            differs_on = probes[at]
        return f"looking words up differs from it on {differs_on[:80]!r}"

    def report(self) -> dict[str, Any]:
        """Say how texts were encoded, for the manifest."""
        if self._lookup is None:
            return {"name": "tokenizer", "reason": self.reason}
        new_words = "tokie" if self._has_words else "tokenizer"
        return {"name": "lookup", "new_words": new_words, "compared_characters": self.num_compared}

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of several texts; give it some hundred thousand characters at a time.

        Raises:
            LookupDiffersError: a comparison with the tokenizer failed; other texts may have got wrong tokens before.
        """
        if self._lookup is None:
            return self._tokenizer.encode_spans(texts).tokens(texts)
        tokens = self._lookup.encode(texts)
        budget, self._budget = self._budget, _COMPARED_CHARACTERS
        sample = _sample(texts, budget)
        self.num_compared += sum(map(len, sample))
        if (at := self._difference(self._lookup, sample)) is not None:
            raise LookupDiffersError(
                f"looking words up gave other tokens than the tokenizer for {sample[at][:200]!r}"
            )
        return tokens

    def _difference(self, encoder: LookupEncoder, texts: Sequence[str]) -> int | None:
        """Return the first text for which the tokens, or what marks are made from, differ."""
        slow = self._tokenizer.encode_spans(texts).tokens(texts)
        fast = encoder.encode(texts)
        size = sum(map(len, texts)) + len(texts)
        places = np.arange(size, dtype=np.int64)
        if (
            np.array_equal(slow.counts, fast.counts)
            and np.array_equal(slow.ids, fast.ids)
            and np.array_equal(slow.begins, fast.begins)
            and np.array_equal(slow.on_han, fast.on_han)
            and np.array_equal(slow.at(places), fast.at(places))
        ):
            return None
        if len(texts) == 1:
            return 0
        return next((i for i, text in enumerate(texts) if self._difference(encoder, [text]) is not None), 0)


def _sample(texts: Sequence[str], budget: int) -> list[str]:
    """Choose texts by their number and size alone: from the middle of the batch, at most `budget` characters."""
    sample: list[str] = []
    for text in texts[len(texts) // 2 :]:
        sample.append(text[:budget])
        budget -= len(text)
        if budget <= 0:
            break
    return sample


def _probes(cuts: Cuts, tokenizer: Tokenizer) -> list[str]:
    """Return texts that hold every character the rules know (of Han characters some) in company, and tokens of the vocabulary."""
    codes = np.flatnonzero((cuts.characters != cuts.other) & (cuts.characters != cuts.han)).tolist()
    codes += np.flatnonzero(cuts.characters == cuts.han)[::101].tolist()
    company = [f"a{c}b 1{c}2 {c} {c}{c}中{c}文,{c}'{c}s é{c}é" for c in map(chr, codes)]
    ids = range(0, tokenizer.vocab_size, -(-tokenizer.vocab_size // _PROBED_TOKENS))
    tokens = [tokenizer.decode([i], skip_special=False) for i in ids]
    groups = [tokens[i : i + 64] for i in range(0, len(tokens), 64)]
    return [*_PROBES, *company, *map("".join, groups), *map(" ".join, groups)]
