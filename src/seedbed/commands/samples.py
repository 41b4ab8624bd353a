"""Take samples of a model on the validation text: what it fills in or goes on with, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedbed.api import LoadedModel
from seedbed.data.store import SENTENCE, SPECIAL, WORD, SplitTokens, TokenStore
from seedbed.hashing import fold, key_from
from seedbed.models.language_model import LanguageModel
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["take_samples"]

_NUM_SAMPLES = 6
_MIN_TOKENS, _MAX_TOKENS = 10, 32
_SEARCHED_TOKENS = 200_000
_PROMPT_TOKENS = 8
_HIDDEN_TOKENS = 3


def take_samples(
    model: LanguageModel, tokenizer: Tokenizer, store: TokenStore, *, device: torch.device
) -> list[dict[str, Any]]:
    """Return samples on sentences of the validation split; always the same sentences and places for one store.

    Masked models hide one word that is a single token, causal ones continue the first tokens of a sentence, greedily;
    encoder-decoders restore a few tokens in its middle, hidden behind the token their pretraining hides them behind.
    """
    loaded = LoadedModel(model, tokenizer, Path("the model in training"))
    split = store.split("validation")
    samples: list[dict[str, Any]] = []
    for number, (ids, marks) in enumerate(_sentences(split)):
        if len(samples) == _NUM_SAMPLES:
            break
        if loaded.is_causal:
            prompt = tokenizer.decode(ids[:_PROMPT_TOKENS].tolist())
            text = loaded.generate(prompt, max_new_tokens=24, temperature=0.0)
            samples.append({"text": prompt, "answer": tokenizer.decode(ids.tolist()), "continuation": text})
            continue
        if loaded.is_encoder_decoder:
            samples.append(_restored(loaded, ids.tolist()))
            continue
        begins = np.append((marks & WORD) != 0, True)
        whole = np.flatnonzero(begins[:-1] & begins[1:] & ((marks & SPECIAL) == 0))
        words = [place for place in whole.tolist() if _is_word(tokenizer.token(int(ids[place])))]
        if not words:
            continue
        place = words[int(fold(key_from("sample", number), 0)) % len(words)]
        answer, mask_id = int(ids[place]), tokenizer.mask_id
        assert mask_id is not None
        hidden = [mask_id if i == place else int(token) for i, token in enumerate(ids)]
        text = tokenizer.decode(hidden, skip_special=False)
        candidates = loaded.fill_ids(hidden, top_k=5)[0]
        samples.append(
            {
                "text": text,
                "answer": tokenizer.token(answer),
                "candidates": [{"token": c.token, "probability": c.probability} for c in candidates],
            }
        )
    return samples


def _restored(loaded: LoadedModel, ids: list[int]) -> dict[str, Any]:
    tokenizer = loaded.tokenizer
    # BART hides spans behind the mask, T5 behind the first sentinel, a reserved token.
    sentinel = tokenizer.mask_id
    if loaded.model.config.family != "bart" and tokenizer.unused_ids:
        sentinel = tokenizer.unused_ids[0]
    assert sentinel is not None
    start = len(ids) // 2
    stop = start + _HIDDEN_TOKENS
    text = tokenizer.decode([*ids[:start], sentinel, *ids[stop:]], skip_special=False)
    written = loaded.generate(text, max_new_tokens=24, temperature=0.0)
    return {"text": text, "answer": tokenizer.decode(ids[start:stop]), "continuation": written}


def _sentences(split: SplitTokens) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Return sentences of a good length, spread over the beginning of the split."""
    stop = min(split.num_tokens, _SEARCHED_TOKENS)
    ids, marks = split.slice(0, stop)
    starts = np.append(np.flatnonzero((marks & (SENTENCE | SPECIAL)) != 0), stop)
    sizes = np.diff(starts)
    good = np.flatnonzero((sizes >= _MIN_TOKENS) & (sizes <= _MAX_TOKENS))
    wanted = 4 * _NUM_SAMPLES
    chosen = (
        good[np.linspace(0, len(good) - 1, min(wanted, len(good))).astype(np.int64)] if len(good) else good
    )
    return [(ids[starts[i] : starts[i + 1]], marks[starts[i] : starts[i + 1]]) for i in chosen]


def _is_word(token: str) -> bool:
    """Say whether a token is worth guessing: letters of more than two, or one Han character."""
    letters = token.lstrip("Ġ▁")
    return letters.isalpha() and (len(letters) > 2 or not letters.isascii())
