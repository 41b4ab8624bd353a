from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from seedbed.tokenizer.learn import ALGORITHMS
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

ENGLISH = [
    "the",
    "little",
    "prince",
    "looked",
    "at",
    "the",
    "river",
    "and",
    "said",
    "nothing",
    "for",
    "a",
    "long",
    "while",
    ".",
    "Where",
    "are",
    "you",
    "going",
    "?",
    "she",
    "asked",
    "him",
    "quietly",
    ",",
    "don't",
    "you",
    "remember",
    "the",
    "house",
    "on",
    "the",
    "hill",
    "café",
    "1898",
    "3.5%",
    "walking",
    "walked",
    "walker",
    "unhappy",
    "happiness",
]
CHINESE = "话说天下大势分久必合合久必分今天天气很好我们去北京大学学习中国历史人民银行增长"


SYLLABLES = ["ba", "con", "der", "ti", "mo", "re", "si", "lan", "gor", "ve", "nu", "pha"]


def make_lines(count: int = 300, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = ENGLISH + ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(200)]
    lines = []
    for _ in range(count):
        english = " ".join(draw.choices(words, k=12))
        chinese = "".join(draw.choices(CHINESE, k=10))
        lines.append(draw.choice([f"{english}.", f"{chinese}，{chinese[::-1]}。", f"{english} {chinese}！"]))
    return lines


def learn(algorithm: str, *, vocab_size: int = 420, lowercase: bool | None = None) -> Tokenizer:
    backend = ALGORITHMS[algorithm](
        make_lines(),
        vocab_size=vocab_size,
        special=special_tokens(4),
        lowercase=algorithm == "wordpiece" if lowercase is None else lowercase,
        min_frequency=1,
        coverage=1.0,
    )
    return Tokenizer(backend)


@pytest.fixture(scope="session", name="learn")
def learn_fixture() -> Callable[..., Tokenizer]:
    """The function above; test modules cannot import it."""
    return learn


@pytest.fixture(scope="session", params=list(ALGORITHMS))
def learned(request: pytest.FixtureRequest) -> Tokenizer:
    """A small vocabulary of each algorithm, learned from English and Chinese lines."""
    return learn(request.param)


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """The lines the vocabularies were learned from."""
    return make_lines()
