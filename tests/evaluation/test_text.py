from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from seedbed.batch import Batch
from seedbed.data.memory import TextTokens
from seedbed.errors import DataError
from seedbed.evaluation.slices import TokenLosses, by_slice, count_tokens, vocabulary_slices
from seedbed.evaluation.text import choose_documents, evaluate_texts, pseudo_log_likelihood
from seedbed.models.bert import BertConfig
from seedbed.models.gpt2 import GPT2Config
from seedbed.models.language_model import build_model
from seedbed.objectives.base import Objective, Vocabulary
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.tokenizer.learn import learn_wordpiece
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer
from toys import VOCAB_SIZE

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "old",
    "men",
    "row",
    "boats",
    "over",
    "calm",
    "water",
    "near",
    "tall",
    "trees",
]


def _texts(count: int = 30) -> list[str]:
    chooser = random.Random(1)
    return [
        "\n".join(
            " ".join(chooser.choices(WORDS, k=chooser.randint(1, 30))) + "."
            for _ in range(chooser.randint(1, 4))
        )
        for _ in range(count)
    ]


TEXTS = _texts()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    lines = [line for text in TEXTS for line in text.split("\n")]
    return Tokenizer(
        learn_wordpiece(
            lines,
            vocab_size=VOCAB_SIZE,
            special=special_tokens(0),
            lowercase=False,
            min_frequency=1,
            coverage=1.0,
        )
    )


def _parts(
    name: str, tokenizer: Tokenizer, row_length: int = 16
) -> tuple[Objective, Mapping[str, nn.Module]]:
    config, family = {"masked_lm": (MaskedLMConfig, BertConfig), "causal_lm": (CausalLMConfig, GPT2Config)}[
        name
    ]
    objective = config().build(Vocabulary.of(tokenizer), row_length=row_length, is_segmented=False)
    section = family(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, max_length=64)
    # Large weights, so that what a token sees changes its probability.
    section = section.updated(initialisation="normal", initialisation_std=0.3)
    model = build_model(section.build(vocab_size=tokenizer.vocab_size), seed=3)
    assert model.head is not None
    return objective, objective.modules(model.trunk, model.head)


class _Uniform(nn.Module):
    """A head that knows nothing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return torch.zeros(*features.shape[:-1], self.size)


def test_a_model_that_knows_nothing_has_the_bits_of_its_vocabulary(tokenizer: Tokenizer) -> None:
    objective, modules = _parts("causal_lm", tokenizer)
    uniform = {**modules, "head": _Uniform(tokenizer.vocab_size)}
    found = evaluate_texts(objective, uniform, TEXTS, tokenizer)
    num_tokens = sum(len(tokenizer.encode(line)) for text in TEXTS for line in text.split("\n"))
    num_bytes = sum(len(t.encode()) for t in TEXTS)
    assert found["text"]["tokens"] == num_tokens + len(TEXTS)  # every token and every separator, once
    assert found["scores"]["targets"] == num_tokens + len(TEXTS)
    assert found["text"]["bytes"] == num_bytes
    assert found["scores"]["loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    assert found["scores"]["bits_per_byte"] == pytest.approx(
        math.log2(tokenizer.vocab_size) * (num_tokens + len(TEXTS)) / num_bytes, rel=1e-6
    )
    assert found["pseudo_log_likelihood"] is None
    objective, modules = _parts("masked_lm", tokenizer)
    uniform = {**modules, "head": _Uniform(tokenizer.vocab_size)}
    pseudo = evaluate_texts(objective, uniform, TEXTS, tokenizer, max_pll_tokens=100)["pseudo_log_likelihood"]
    assert pseudo["nats_per_token"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    assert pseudo["bits_per_byte"] == pytest.approx(
        math.log2(tokenizer.vocab_size) * pseudo["tokens"] / pseudo["bytes"], rel=1e-6
    )


@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_batch_size_changes_rounding_only(name: str, tokenizer: Tokenizer) -> None:
    objective, modules = _parts(name, tokenizer)
    results = [
        evaluate_texts(objective, modules, TEXTS[:8], tokenizer, max_pll_tokens=60, rows_per_batch=rows)
        for rows in (1, 7, None)
    ]
    for other in results[1:]:
        assert other["text"] == results[0]["text"]
        for group in ("scores", "pseudo_log_likelihood"):
            assert other[group] == (results[0][group] and pytest.approx(results[0][group], rel=1e-5))
    assert results[0]["scores"]["loss"] > 0.1


def test_bits_per_byte_is_the_sum_over_windows(tokenizer: Tokenizer) -> None:
    """Against a plain loop: each token from those before it in its window, a separator in front."""
    objective, modules = _parts("causal_lm", tokenizer)
    stream: list[int] = []
    for text in TEXTS[:6]:
        stream += [i for line in text.split("\n") for i in tokenizer.encode(line)] + [tokenizer.separator_id]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(stream), 16):
            window = stream[start : start + 16]
            inputs = torch.tensor([[tokenizer.separator_id, *window[:-1]]])
            logits = modules["head"](modules["trunk"](Batch(inputs, attention="causal")).last[0])
            nats -= float(logits.log_softmax(-1)[torch.arange(len(window)), window].double().sum())
    found = evaluate_texts(objective, modules, TEXTS[:6], tokenizer)
    num_bytes = sum(len(t.encode()) for t in TEXTS[:6])
    assert found["scores"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_pseudo_log_likelihood_is_the_sum_over_hidden_tokens(tokenizer: Tokenizer) -> None:
    """Against a plain loop over every token of every line."""
    objective, modules = _parts("masked_lm", tokenizer, row_length=64)
    vocabulary = objective.vocabulary
    lines = [line for text in TEXTS[:3] for line in text.split("\n")]
    nats, count = 0.0, 0
    with torch.no_grad():
        for line in lines:
            row = [vocabulary.cls_id, *tokenizer.encode(line), vocabulary.separator_id]
            for place in range(1, len(row) - 1):
                hidden = torch.tensor([row])
                hidden[0, place] = vocabulary.mask_id
                logits = modules["head"](modules["trunk"](Batch(hidden)).last[0, place])
                nats -= float(logits.log_softmax(-1)[row[place]])
                count += 1
    found = pseudo_log_likelihood(objective, modules, TEXTS[:3], tokenizer, max_tokens=10_000)
    assert (found.lines, found.tokens) == (len(lines), count)
    assert found.bytes == found.of_bytes == sum(len(line) for line in lines)
    assert found.nats_per_token == pytest.approx(nats / count, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes, rel=1e-5)


def test_the_sample_keeps_its_budget_and_does_not_depend_on_order(tokenizer: Tokenizer) -> None:
    objective, modules = _parts("masked_lm", tokenizer, row_length=64)
    found = pseudo_log_likelihood(objective, modules, TEXTS, tokenizer, max_tokens=150)
    assert 150 - 62 < found.tokens <= 150
    assert found.lines < found.of_lines
    shuffled = pseudo_log_likelihood(objective, modules, TEXTS[::-1], tokenizer, max_tokens=150)
    assert shuffled == found
    more = pseudo_log_likelihood(objective, modules, TEXTS, tokenizer, max_tokens=250)
    assert more.lines > found.lines


def test_long_lines_are_cut_and_all_their_bytes_counted(tokenizer: Tokenizer) -> None:
    objective, modules = _parts("masked_lm", tokenizer, row_length=16)
    text = " ".join(WORDS * 6) + "."
    found = pseudo_log_likelihood(objective, modules, [text], tokenizer, max_tokens=10_000)
    assert found.tokens == len(tokenizer.encode(text)) > 50
    assert (found.lines, found.bytes) == (1, len(text))
    assert pseudo_log_likelihood(objective, modules, [text], tokenizer, max_tokens=5).tokens == 5


def test_baselines_are_those_of_the_same_targets(tokenizer: Tokenizer) -> None:
    train = TextTokens(_texts(200), tokenizer)
    for name in ("masked_lm", "causal_lm"):
        objective, modules = _parts(name, tokenizer)
        found = evaluate_texts(objective, modules, TEXTS, tokenizer, train=train, max_pll_tokens=0)
        assert found["pseudo_log_likelihood"] is None
        assert found["baselines"]["bigram"] < found["baselines"]["unigram"] < found["baselines"]["uniform"]


def test_documents_are_chosen_by_hash_within_the_budget() -> None:
    texts = [f"document {i} " + "x" * (i % 7) for i in range(100)]
    chosen, count, total = choose_documents(iter(texts), max_bytes=300)
    assert (count, total) == (100, sum(map(len, texts)))
    assert 250 < sum(map(len, chosen)) <= 300
    assert chosen == [t for t in texts if t in set(chosen)]  # in their order
    assert set(choose_documents(texts[::-1], max_bytes=300)[0]) == set(chosen)
    assert choose_documents(texts, max_bytes=None)[0] == texts
    assert choose_documents(["long" * 100], max_bytes=3)[0] == ["long" * 100]
    assert choose_documents(["same", "same"], max_bytes=None)[0] == ["same", "same"]


@pytest.mark.parametrize("texts", [[], ["", ""]])
@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_no_text_is_an_error(name: str, texts: list[str], tokenizer: Tokenizer) -> None:
    objective, modules = _parts(name, tokenizer)
    with pytest.raises(DataError):
        evaluate_texts(objective, modules, texts, tokenizer)


@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_slices_of_the_vocabulary_add_up_to_the_loss(name: str, tokenizer: Tokenizer) -> None:
    objective, modules = _parts(name, tokenizer)
    found = TokenLosses(tokenizer.vocab_size)
    told = evaluate_texts(objective, modules, TEXTS, tokenizer, max_pll_tokens=0, by_token=found)
    stream = TextTokens(TEXTS, tokenizer)
    counts = count_tokens(stream, tokenizer.vocab_size)
    assert counts.sum() == stream.num_tokens
    for parts in by_slice(found, vocabulary_slices(tokenizer, counts)).values():
        targets = sum(part["targets"] for part in parts.values())
        assert targets == told["scores"]["targets"]
        loss = sum(part["loss"] * part["targets"] for part in parts.values()) / targets
        assert loss == pytest.approx(told["scores"]["loss"], rel=1e-6)
