"""Slices of a vocabulary: every token once, named by what it is in text, whatever the vocabulary writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seedbed.evaluation.slices import TokenLosses, by_slice, vocabulary_slices
from seedbed.tokenizer.learn import learn_bpe, learn_wordpiece
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

LINES = [
    "He saw the old boats, in 1984; seeing is believing.",
    "我们在北京看见了船。",
    "old boats and new boats",
] * 8


def _tokenizer(algorithm: str) -> Tokenizer:
    learn = {"wordpiece": learn_wordpiece, "bpe": learn_bpe}[algorithm]
    return Tokenizer(
        learn(
            LINES, vocab_size=400, special=special_tokens(0), lowercase=False, min_frequency=1, coverage=1.0
        )
    )


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_every_token_is_in_one_slice_of_a_partition(algorithm: str) -> None:
    tokenizer = _tokenizer(algorithm)
    counts = np.arange(tokenizer.vocab_size) % 50
    slices = vocabulary_slices(tokenizer, counts)
    for parts in slices.values():
        ids = np.concatenate(list(parts.values()))
        assert sorted(ids.tolist()) == list(range(tokenizer.vocab_size))
    if rest := slices["by how common"].get("the next 900", np.zeros(0, dtype=int)).tolist():
        assert counts[slices["by how common"]["the 100 commonest"]].min() >= counts[rest].max()


@pytest.mark.parametrize(
    ("algorithm", "token", "kind"),
    [
        ("wordpiece", "boats", "begins a word"),
        ("wordpiece", "##s", "continues a word"),
        ("wordpiece", ",", "signs"),
        ("wordpiece", "我", "Chinese"),
        ("wordpiece", "[MASK]", "special"),
        ("wordpiece", "1", "numbers"),
        ("bpe", "\u0120boats", "begins a word"),
        ("bpe", "ing", "continues a word"),
        ("bpe", ";", "signs"),
        ("bpe", "9", "numbers"),
    ],
)
def test_kinds(algorithm: str, token: str, kind: str) -> None:
    tokenizer = _tokenizer(algorithm)
    found = tokenizer.token_id(token)
    assert found is not None
    slices = vocabulary_slices(tokenizer, np.zeros(tokenizer.vocab_size, dtype=np.int64))["by kind"]
    assert [name for name, ids in slices.items() if found in ids] == [kind]


def test_weights_count_and_slices_without_targets_are_left_out() -> None:
    found = TokenLosses(4)
    found.add(torch.tensor([1, 1, 3]), torch.tensor([2.0, 4.0, 9.0]), torch.tensor([1.0, 3.0, 0.0]))
    told = by_slice(found, {"p": {"a": np.array([0, 1]), "b": np.array([2, 3])}})
    assert told == {"p": {"a": {"loss": 3.5, "targets": 4.0}}}
