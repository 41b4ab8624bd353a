"""Labelled texts as an objective: frames, targets, gradients, learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seedbed.batch import Batch
from seedbed.data.examples import ExampleReader
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.hashing import key_from
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.classification import Classification, ClassificationConfig
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toy_tasks import ToyTokenizer, toy_task
from toys import VOCABULARY, toy_model

LENGTH = 24
FAMILIES = ["bert", "modernbert", "llama", "gpt2"]


def build(family="bert", kind="classification", *, pairs=False, row_length=LENGTH, model=None, **config):
    data = toy_task(kind, pairs=pairs)
    model = model or toy_model(family)
    objective = Classification(
        ClassificationConfig(**config), VOCABULARY, row_length=row_length, is_segmented=False, data=data
    )
    objective.check(model.config)
    reader = ExampleReader(
        objective.view_of(data.splits["train"], ToyTokenizer()), name="examples", seed=1, batch_rows=8
    )
    return objective, model, reader


def batch_of(objective, reader, numbers):
    rows = reader.view.rows(np.zeros(len(numbers), np.int64), np.array(numbers, np.int64))
    return objective.make_batch(rows, None)


@pytest.mark.parametrize("pairs", [False, True])
def test_encoders_read_cls_and_sep_around_texts(pairs):
    objective, _, reader = build(pairs=pairs)
    batch, targets = batch_of(objective, reader, range(6))
    for row, example in enumerate(objective.data.splits["train"][:6]):
        first = ToyTokenizer().encode(example.text)
        second = ToyTokenizer().encode(example.text_pair) if pairs else None
        expected = [2, *first, 3] + ([*second, 3] if pairs else [])
        ids = batch.input_ids[row].tolist()
        assert ids == expected + [0] * (len(ids) - len(expected))
        assert batch.segment_ids[row].tolist() == [1] * len(expected) + [0] * (len(ids) - len(expected))
        if pairs:
            types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
            assert batch.token_type_ids[row].tolist() == types + [0] * (len(ids) - len(expected))
    assert batch.has_padding
    assert pairs or batch.token_type_ids is None
    assert targets["classification"].values.tolist() == [0, 1, 2, 0, 1, 2]
    assert (targets["classification"].at % batch.input_ids.shape[1] == 0).all()


def test_decoders_read_a_separator_first_and_answer_at_the_last_token():
    objective, _, reader = build("llama", pairs=True)
    batch, targets = batch_of(objective, reader, range(6))
    at = targets["classification"].at
    for row, example in enumerate(objective.data.splits["train"][:6]):
        expected = [3, *ToyTokenizer().encode(example.text), 3, *ToyTokenizer().encode(example.text_pair)]
        assert batch.input_ids[row, : len(expected)].tolist() == expected
        assert int(at[row]) == row * batch.input_ids.shape[1] + len(expected) - 1
    assert batch.attention == "causal"
    assert batch.token_type_ids is None


def test_rows_are_cut_to_the_row_length():
    for pairs, family in ((True, "bert"), (False, "bert"), (True, "llama")):
        objective, _, reader = build(family, pairs=pairs, row_length=10)
        batch, _ = batch_of(objective, reader, range(32))
        assert batch.input_ids.shape == (32, 10)
        assert reader.view.num_cut > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_padding_and_neighbours_change_nothing(family, pooling):
    objective, model, reader = build(family, pairs=True, pooling=pooling)
    modules = objective.modules(model.trunk, model.head)

    def logits(numbers):
        with torch.no_grad():
            return objective.outputs(modules, *batch_of(objective, reader, numbers))

    whole = logits(range(12))
    for row in range(12):
        assert torch.allclose(whole[row], logits([row])[0], atol=1e-5)


def test_the_loss_against_a_slow_one():
    objective, model, reader = build(pairs=True)
    modules = objective.modules(model.trunk, model.head, seed=3)
    head = modules["classifier"]
    batch, targets = batch_of(objective, reader, range(8))
    with torch.no_grad():
        term = objective.losses(modules, batch, targets, with_details=True)["classification"]
        expected = 0.0
        for row, example in enumerate(objective.data.splits["train"][:8]):
            first, second = ToyTokenizer().encode(example.text), ToyTokenizer().encode(example.text_pair)
            ids = torch.tensor([[2, *first, 3, *second, 3]])
            types = torch.tensor([[0] * (len(first) + 2) + [1] * (len(second) + 1)])
            features = model.trunk(Batch(ids, token_type_ids=types)).last[:, 0]
            logits = torch.tanh(features @ head.dense.weight.T + head.dense.bias) @ head.output.weight.T
            expected += float(F.cross_entropy(logits + head.output.bias, torch.tensor([row % 3])))
    assert float(term.loss) == pytest.approx(expected, rel=1e-5)
    assert float(term.per_target.sum()) == pytest.approx(expected, rel=1e-5)


def test_regression_is_squared_error():
    objective, model, reader = build(kind="regression")
    modules = objective.modules(model.trunk, model.head)
    batch, targets = batch_of(objective, reader, range(9))
    with torch.no_grad():
        scores = objective.outputs(modules, batch, targets)[:, 0]
        loss = objective.losses(modules, batch, targets)["regression"].loss
    truth = torch.tensor([0.0, 1.0, 2.0] * 3)
    assert torch.allclose(targets["regression"].values, truth)
    assert float(loss) == pytest.approx(float(((scores - truth) ** 2).sum()), rel=1e-5)
    assert objective.chance("regression") == pytest.approx(
        float(np.var(np.array(objective.data.targets("train"))))
    )


def gradients(objective, model, reader, sizes, *, dropout=True):
    learner = Learner([objective], objective.modules(model.trunk, model.head, seed=5))
    optimizer = AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())
    micros, start = [], 0
    for size in sizes:
        micros.append(MicroBatch(*objective.make_batch(*reader.read(start, size))))
        start += size
    result = train_step(
        learner,
        optimizer,
        micros,
        objectives=[objective],
        progress=0.5,
        learning_rate=0.0,
        max_grad_norm=0.0,
        dropout_key=key_from(7) if dropout else None,
    )
    return result, {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_micro_batches_give_the_same_gradients(family, kind):
    """With dropout too: what a row drops does not depend on its batch."""
    found = []
    for sizes in ([12], [1] * 12, [5, 7]):
        model = toy_model(family, hidden_dropout=0.2)
        found.append(gradients(*build(family, kind, pairs=True, model=model), sizes))
    for result, grads in found[1:]:
        for key, loss in found[0][0].losses.items():
            assert torch.allclose(loss, result.losses[key], rtol=1e-4)
        assert grads.keys() == found[0][1].keys()
        for name, gradient in found[0][1].items():
            assert torch.allclose(gradient, grads[name], rtol=1e-3, atol=1e-5), name


def test_dropout_of_the_head_drops_its_share_and_only_in_training():
    objective, model, reader = build(dropout=0.5)
    modules = objective.modules(model.trunk, model.head)
    batch, targets = batch_of(objective, reader, range(32))
    (plain,) = objective.predict(modules, batch, targets).values()
    (dropped,) = objective.predict(modules, batch, targets, dropout_key=key_from(1)).values()
    share = float((dropped.features == 0).float().mean())
    assert 0.45 < share < 0.55
    kept = dropped.features != 0
    assert torch.allclose(dropped.features[kept], 2 * plain.features[kept], rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "pairs"), [("classification", False), ("classification", True), ("regression", True)]
)
def test_overfits_32_examples(family, kind, pairs):
    objective, model, reader = build(family, kind, pairs=pairs, dropout=0.0)
    learner = Learner([objective], objective.modules(model.trunk, model.head, seed=0))
    optimizer = AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())
    for step in range(60):
        micro = MicroBatch(*objective.make_batch(*reader.read(32 * step, 32)))
        result = train_step(
            learner,
            optimizer,
            [micro],
            objectives=[objective],
            progress=step / 60,
            learning_rate=5e-3 * (1 - step / 60),
            max_grad_norm=1.0,
        )
    (loss,) = (float(value) for value in result.losses.values())
    assert loss < 0.1 * objective.chance(objective.term)


def test_heads_depend_on_the_seed_alone_and_the_language_head_is_left_out():
    objective, model, _ = build()
    one, again, other = (objective.modules(model.trunk, model.head, seed=s) for s in (1, 1, 2))
    assert set(one) == {"trunk", "classifier"}
    weights = [m["classifier"].output.weight for m in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert objective.chance("classification") == pytest.approx(math.log(3))


def test_what_does_not_fit_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="first token has seen nothing"):
        build("llama", pooling="first")
    with pytest.raises(ConfigError, match="answers in words"):
        build(kind="generation")
    with pytest.raises(IncompatibleError, match="positions"):
        build(row_length=100)
    bare = Vocabulary(vocab_size=64, separator_id=3, special_ids=frozenset())
    objective = Classification(
        ClassificationConfig(), bare, row_length=LENGTH, is_segmented=False, data=toy_task()
    )
    with pytest.raises(IncompatibleError, match=r"\[CLS\] and \[SEP\]"):
        objective.check(toy_model("bert").config)
