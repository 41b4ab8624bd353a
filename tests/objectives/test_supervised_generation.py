"""Prompts and answers: only the answer is predicted, padding changes nothing, and it is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seedbed.batch import Batch
from seedbed.data.views import RowReader, RowSource
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.hashing import key_from
from seedbed.objectives.supervised_generation import SupervisedGeneration, SupervisedGenerationConfig
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toy_tasks import ToyTokenizer, toy_task
from toys import VOCABULARY, ToySplit, toy_model

LENGTH = 24
CASES = [("llama", "causal"), ("llama", "prefix"), ("gpt2", "causal"), ("t5", "causal"), ("bart", "causal")]


def build(family="llama", prompt="causal", *, row_length=LENGTH, model=None):
    model = model or toy_model(family)
    objective = SupervisedGeneration(
        SupervisedGenerationConfig(prompt=prompt),
        VOCABULARY,
        row_length=row_length,
        is_segmented=False,
        data=toy_task("generation"),
    )
    objective.check(model.config)
    view = objective.make_view(RowSource(ToySplit(), tokenizer=ToyTokenizer()))
    return objective, model, RowReader(view, name="examples", seed=1)


def batch_of(objective, reader, numbers):
    return objective.make_batch(
        reader.view.rows(np.zeros(len(numbers), np.int64), np.array(numbers, np.int64)), None
    )


def texts(objective, number):
    example = objective.data.splits["train"][number]
    return ToyTokenizer().encode(example.text), ToyTokenizer().encode(example.label)


def test_a_decoder_reads_both_and_predicts_the_answer_alone():
    objective, _, reader = build()
    batch, targets = batch_of(objective, reader, range(6))
    values = targets["answer"].values.tolist()
    at = targets["answer"].at.tolist()
    for row in range(6):
        prompt, answer = texts(objective, row)
        expected = [3, *prompt, 3, *answer]
        ids = batch.input_ids[row].tolist()
        assert ids == expected + [0] * (len(ids) - len(expected))
        for value in [*answer, 3]:
            place = at.pop(0)
            assert values.pop(0) == value
            assert place // len(ids) == row
            following = place % len(ids) + 1
            assert value == (expected[following] if following < len(expected) else 3)
    assert not values


def test_an_encoder_decoder_reads_the_prompt_on_one_side():
    objective, model, reader = build("t5")
    batch, targets = batch_of(objective, reader, range(6))
    start = model.config.special_ids["decoder_start"]
    found = targets["answer"].values.tolist()
    for row in range(6):
        prompt, answer = texts(objective, row)
        ids, decoder = batch.input_ids[row].tolist(), batch.decoder_input_ids[row].tolist()
        assert ids == [*prompt, 3] + [0] * (len(ids) - len(prompt) - 1)
        assert decoder[: len(answer) + 1] == [start, *answer]
        assert batch.decoder_segment_ids[row].sum() == len(answer) + 1
        assert [found.pop(0) for _ in range(len(answer) + 1)] == [*answer, 3]
    assert targets["answer"].stream == "decoder"


@pytest.mark.parametrize(("family", "prompt"), CASES)
def test_losses_are_those_of_rows_alone(family, prompt):
    objective, model, reader = build(family, prompt)
    modules = objective.modules(model.trunk, model.head)
    with torch.no_grad():
        whole = objective.losses(modules, *batch_of(objective, reader, range(8)), with_details=True)["answer"]
        alone = [
            float(objective.losses(modules, *batch_of(objective, reader, [row]))["answer"].loss)
            for row in range(8)
        ]
    assert float(whole.loss) == pytest.approx(sum(alone), rel=1e-4)


def test_the_loss_against_a_slow_one():
    objective, model, reader = build()
    modules = objective.modules(model.trunk, model.head)
    prompt, answer = texts(objective, 2)
    with torch.no_grad():
        found = float(objective.losses(modules, *batch_of(objective, reader, [2]))["answer"].loss)
        row = [3, *prompt, 3, *answer, 3]
        logits = model.logits(model(Batch(torch.tensor([row[:-1]]), attention="causal")).last[0])
        places = range(len(prompt) + 1, len(row) - 1)
        expected = sum(float(F.cross_entropy(logits[p], torch.tensor(row[p + 1]))) for p in places)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_prefix_lets_the_prompt_see_itself_and_never_the_answer():
    objective, model, reader = build("llama", "prefix")
    batch, _ = batch_of(objective, reader, [1])
    prompt, _ = texts(objective, 1)
    changed = batch.input_ids.clone()
    changed[0, len(prompt)] = 60  # the prompt's last token
    with torch.no_grad():
        before = model(batch).last[0]
        end = Batch(changed, attention="order", attend_order=batch.attend_order)
        assert not torch.allclose(before[1], model(end).last[0, 1], atol=1e-6)
        answer = batch.input_ids.clone()
        answer[0, -1] = 60
        after = model(Batch(answer, attention="order", attend_order=batch.attend_order)).last[0]
    assert torch.allclose(before[: len(prompt) + 2], after[: len(prompt) + 2], atol=1e-6)


@pytest.mark.parametrize(("family", "prompt"), CASES)
def test_micro_batches_give_the_same_gradients_and_32_rows_are_learned(family, prompt):
    found = []
    for sizes in ([12], [5, 7]):
        objective, model, reader = build(family, prompt, model=toy_model(family, hidden_dropout=0.1))
        learner = Learner([objective], objective.modules(model.trunk, model.head))
        optimizer = AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        micros = [
            MicroBatch(*objective.make_batch(*reader.read(s, n))) for s, n in zip(starts, sizes, strict=True)
        ]
        options = {"objectives": [objective], "progress": 0.0, "max_grad_norm": 0.0}
        train_step(learner, optimizer, micros, learning_rate=0.0, dropout_key=key_from(3), **options)
        found.append({n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-4), name
    first = last = 0.0
    for step in range(40):
        micro = MicroBatch(*objective.make_batch(*reader.read(32 * step, 32)))
        rate = 1e-2 * (1 - step / 40)
        result = train_step(
            learner, optimizer, [micro], learning_rate=rate, **{**options, "max_grad_norm": 1.0}
        )
        last = float(next(iter(result.losses.values())))
        first = first or last
    assert last < 0.5 * first


def test_what_does_not_fit_is_refused_with_a_hint():
    with pytest.raises(IncompatibleError, match="an encoder"):
        build("bert")
    with pytest.raises(ConfigError, match="no task of prompts"):
        SupervisedGeneration(
            SupervisedGenerationConfig(), VOCABULARY, row_length=8, is_segmented=False, data=toy_task()
        )
