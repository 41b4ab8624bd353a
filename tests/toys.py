"""Toys every test may build on: a split of tokens in memory, a vocabulary of 64 tokens, a two-layer model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from seedbed.data.store import DOCUMENT, SENTENCE, SPECIAL, WORD
from seedbed.data.views import RowReader, WindowView
from seedbed.models import MODELS
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.objectives.base import Vocabulary

VOCAB_SIZE = 64
VOCABULARY = Vocabulary(
    vocab_size=VOCAB_SIZE,
    separator_id=3,
    special_ids=frozenset(range(5)),
    pad_id=0,
    cls_id=2,
    sep_id=3,
    mask_id=4,
)
RESERVED = replace(
    VOCABULARY,
    vocab_size=80,
    special_ids=frozenset([*range(5), *range(64, 80)]),
    unused_ids=tuple(range(64, 80)),
)
"""The same vocabulary with 16 tokens in reserve, as learned ones have: sentinels and marks of objectives."""


class ToySplit:
    """Documents of words of 1 to 4 tokens in memory, with the reading side of `SplitTokens`.

    Text has structure a model can learn: a word's later tokens follow from its first.
    """

    def __init__(self, num_documents: int = 12, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> None:
        random = np.random.default_rng(seed)
        ids: list[int] = []
        marks: list[int] = []
        starts: list[int] = []
        self.vocab_size = vocab_size
        for _ in range(num_documents):
            starts.append(len(ids))
            first_of_document = True
            for number in range(int(random.integers(5, 40))):
                size = int(random.choice([1, 1, 1, 2, 3, 4]))
                first = int(random.integers(5, vocab_size))
                for piece in range(size):
                    ids.append(5 + (first - 5 + 7 * piece) % (vocab_size - 5))
                    mark = WORD if piece == 0 else 0
                    if piece == 0 and number % 4 == 0:  # sentences of four words
                        mark |= SENTENCE
                    if first_of_document:
                        mark |= DOCUMENT | SENTENCE
                        first_of_document = False
                    marks.append(mark)
            ids.append(3)
            marks.append(SPECIAL | WORD)
        self.ids = np.array(ids, dtype=np.int32)
        self.marks = np.array(marks, dtype=np.uint8)
        self._starts = np.array(starts, dtype=np.int64)
        self.num_tokens = len(ids)
        self.num_documents = num_documents

    def gather(self, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = np.asarray(starts)[:, None] + np.arange(length)
        valid = np.clip(self.num_tokens - np.asarray(starts), 0, length)
        inside = index < self.num_tokens
        index = np.minimum(index, self.num_tokens - 1)
        return (
            np.where(inside, self.ids[index], 0),
            np.where(inside, self.marks[index], 0).astype(np.uint8),
            valid,
        )

    def slice(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[start:stop], self.marks[start:stop]

    def document_starts(self) -> np.ndarray:
        return self._starts

    def token_counts(self) -> np.ndarray:
        return np.bincount(self.ids, minlength=self.vocab_size).astype(np.int64)


def toy_reader(
    length: int = 16, *, seed: int = 0, num_documents: int = 12, document_order_key: int | None = None
) -> RowReader:
    """Rows of a toy split."""
    view = WindowView(ToySplit(num_documents), length=length, document_order_key=document_order_key)
    return RowReader(view, name="windows", seed=seed)


def toy_model(
    family: str = "bert", *, seed: int = 0, vocabulary: Vocabulary = VOCABULARY, **changes: object
) -> LanguageModel:
    """A two-layer model of 32 units for the toy vocabulary."""
    section = MODELS[family].model_validate(
        {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 64, "max_length": 64, **changes}
    )
    return build_model(
        section.build(vocab_size=vocabulary.vocab_size, special_ids=vocabulary.role_ids()), seed=seed
    )


def clone_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
