"""Contrastive vectors against a slow reference; groups that nothing cuts; what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from seedbed.data.views import RowReader, RowSource
from seedbed.errors import ConfigError, DataError, IncompatibleError
from seedbed.evaluation.intrinsic import build_evaluation_set, score
from seedbed.hashing import fold, key_from
from seedbed.models.language_model import LanguageModel
from seedbed.objectives.contrastive import ContrastiveConfig
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toy_tasks import ToyTokenizer
from toys import RESERVED, ToySplit, toy_model

LENGTH = 16
KEY = key_from("test")


def setup(family="bert", dropout=0.1, **config):
    objective = ContrastiveConfig(**{"group_rows": 4, **config}).build(
        RESERVED, row_length=LENGTH, is_segmented=False
    )
    model = toy_model(family, vocabulary=RESERVED, hidden_dropout=dropout)
    objective.check(model.config)
    learner = Learner([objective], objective.modules(model.trunk, model.head, seed=1))
    view = objective.make_view(RowSource(ToySplit(40), tokenizer=ToyTokenizer()))
    return objective, learner, RowReader(view, name=objective.view, seed=0), model


def slow_loss(first, second, group, temperature, negatives=None):
    """Equation 4 (and 5) of SimCSE, a sentence at a time."""
    total = 0.0
    for i in range(len(first)):
        start = i // group * group
        others = [second[j] for j in range(start, start + group)]
        others += [] if negatives is None else [negatives[j] for j in range(start, start + group)]
        scores = [float(torch.cosine_similarity(first[i], other, dim=0)) / temperature for other in others]
        total -= scores[i - start] - math.log(sum(math.exp(score) for score in scores))
    return total


def vectors_of(objective, model, learner, batch, key):
    """The pooled states of every row of a batch, each run alone."""
    found = []
    for row in range(len(batch.input_ids)):
        alone = type(batch)(
            batch.input_ids[row : row + 1],
            segment_ids=None if batch.segment_ids is None else batch.segment_ids[row : row + 1],
            row_ids=batch.row_ids[row : row + 1],
            attention=batch.attention,
            has_padding=batch.has_padding,
        )
        states = model.trunk(alone, dropout_key=key).last[0]
        size = len(states) if alone.segment_ids is None else int((alone.segment_ids > 0).sum())
        if objective.pooling == "mean":
            vector = states[:size].mean(dim=0)
        elif objective.pooling == "last":
            vector = states[size - 1]
        else:
            vector = states[0]
        if objective.pooling == "cls_mlp":
            vector = learner.parts["projection"](vector[None])[0]
        found.append(vector.detach())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("bert", "auto"), ("bert", "cls"), ("modernbert", "mean"), ("llama", "auto"), ("gpt2", "mean")],
)
def test_the_loss_is_that_of_the_paper(family, pooling):
    objective, learner, reader, model = setup(family, pooling=pooling)
    batch, targets = objective.make_batch(*reader.read(0, 8))
    terms = objective.losses(learner.modules_by_name(), batch, targets, dropout_key=KEY, with_details=True)
    vectors = vectors_of(objective, model, learner, batch, KEY)
    first, second = vectors[:8], vectors[8:]
    assert not torch.allclose(first, second, atol=1e-3)
    term = terms["contrastive"]
    assert float(term.loss.detach()) == pytest.approx(slow_loss(first, second, 4, 0.05), rel=1e-4)
    assert torch.allclose(term.per_target.sum(), term.loss)

    # Alignment and uniformity, Wang and Isola's equations, one pair at a time.
    first, second = (torch.nn.functional.normalize(v, dim=1) for v in (first, second))
    alignment = sum(float((a - b).square().sum()) for a, b in zip(first, second, strict=True))
    assert float(term.sums["alignment"].detach()) == pytest.approx(alignment, rel=1e-3)
    uniformity = 0.0
    for start in (0, 4):
        near = [
            math.exp(-2 * float((first[i] - first[j]).square().sum()))
            for i in range(start, start + 4)
            for j in range(start, start + 4)
            if i < j
        ]
        uniformity += 4 * math.log(sum(near) / len(near))
    assert float(term.sums["uniformity"].detach()) == pytest.approx(uniformity, rel=1e-3)


def pair_files(folder, negatives):
    lines = ["sent0,sent1,hard"]
    lines += [f"w{5 + n} w{6 + n} w{7 + n},w{6 + n} w{5 + n},w{5 + n} w{40 - n} w9" for n in range(16)]
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return {"train": [str(path)], "dev": [str(path)], "negative": "hard" if negatives else None}


@pytest.mark.parametrize("negatives", [False, True])
def test_pairs_and_hard_negatives(negatives, tmp_path):
    objective, learner, reader, model = setup(dropout=0.0, pairs=pair_files(tmp_path, negatives))
    assert reader.num_rows == 16
    batch, targets = objective.make_batch(*reader.read(0, 8))
    assert len(batch.input_ids) == 8 * (3 if negatives else 2)
    for row, number in enumerate(reader.read(0, 8)[0].row_ids.tolist()):
        texts = [[5 + number, 6 + number, 7 + number], [6 + number, 5 + number], [5 + number, 40 - number, 9]]
        for view in range(3 if negatives else 2):
            ids = batch.input_ids[view * 8 + row].tolist()
            assert ids == ([2, *texts[view], 3] + [0] * 5)[: len(ids)]
    (term,) = objective.losses(learner.modules_by_name(), batch, targets).values()
    vectors = vectors_of(objective, model, learner, batch, None)
    expected = slow_loss(vectors[:8], vectors[8:16], 4, 0.05, vectors[16:] if negatives else None)
    assert float(term.loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert objective.chance("contrastive") == pytest.approx(math.log(8 if negatives else 4))


@pytest.mark.parametrize("nested", [None, {}])
def test_micro_batches_of_whole_groups_change_rounding_only(nested):
    found = []
    for size in (12, 4):
        objective, learner, reader, _ = setup(masked_lm=nested)
        optimizer = AdamWConfig().build(learner.parts.named_parameters())
        batches = [
            MicroBatch(*objective.make_batch(*reader.read(start, size))) for start in range(0, 12, size)
        ]
        result = train_step(
            learner,
            optimizer,
            batches,
            objectives=[objective],
            progress=0.5,
            learning_rate=0.0,
            max_grad_norm=0.0,
            dropout_key=KEY,
        )
        found.append((result.losses, {n: p.grad for n, p in learner.parts.named_parameters()}))
    (losses, whole), (other, cut) = found
    assert losses.keys() == {(0, term) for term in objective.terms}
    for key in losses:
        assert torch.allclose(losses[key], other[key], rtol=1e-5)
    for name, gradient in whole.items():
        if gradient is not None:
            assert torch.allclose(
                gradient, cut[name], atol=1e-5 * float(gradient.abs().max().clamp(min=1e-3)) * 10
            ), name


def test_negatives_come_from_the_group_alone():
    """Another second group leaves the losses of the first as they were."""
    objective, learner, reader, _ = setup()

    def first_losses(*starts):
        rows, draws = reader.read_at(torch.cat([torch.arange(s, s + 4) for s in starts]).numpy())
        term = objective.losses(
            learner.modules_by_name(), *objective.make_batch(rows, draws), dropout_key=KEY, with_details=True
        )["contrastive"]
        return term.per_target[:4]

    assert torch.allclose(first_losses(0, 4), first_losses(0, 8), atol=1e-5)
    assert not torch.allclose(first_losses(0, 4), first_losses(4, 0), atol=1e-3)


def test_masked_lm_hides_tokens_of_the_same_sentences_and_trains_the_head():
    objective, learner, reader, model = setup(masked_lm={"mask_rate": 0.3, "initial_mask_rate": None})
    rows, draws = reader.read(0, 8)
    batch, targets = objective.make_batch(rows, draws)
    assert len(batch.input_ids) == 24
    target = targets["masked_lm"]
    kept = target.weights > 0 if target.weights is not None else torch.ones_like(target.at, dtype=torch.bool)
    flat = batch.input_ids.flatten()
    original = batch.input_ids[:8].flatten()
    shift = 16 * batch.input_ids.shape[1]
    assert (target.at[kept] >= shift).all()
    assert torch.equal(original[target.at[kept] - shift], target.values[kept])
    assert (flat[target.at[kept]] == RESERVED.mask_id).any()
    assert "head" in learner.modules_by_name()
    assert objective.weights(0.5) == {"contrastive": 1.0, "masked_lm": 0.1}
    assert objective.exported(model, learner.modules_by_name()).head is not None


def test_alone_it_leaves_the_head_out_and_exports_the_trunk():
    objective, learner, _, model = setup()
    assert set(learner.modules_by_name()) == {"trunk", "projection"}
    exported = objective.exported(model, learner.modules_by_name())
    assert isinstance(exported, LanguageModel)
    assert exported.head is None
    assert objective.speaks == "nothing"


def test_the_views_differ_in_dropout_only_and_the_same_way_again():
    objective, _, reader, model = setup()
    batch, _ = objective.make_batch(*reader.read(0, 4))
    assert torch.equal(batch.input_ids[:4], batch.input_ids[4:])
    assert len(set(batch.row_ids.tolist())) == 8
    one, again = (model.trunk(batch, dropout_key=KEY).last for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.allclose(one[:4], one[4:])
    other = model.trunk(batch, dropout_key=fold(KEY, 1)).last
    assert not torch.allclose(one, other)


def test_it_learns_and_evaluation_keeps_its_task():
    """Fixed dropout in evaluation: the loss starts near a guess, falls, and repeats exactly."""
    objective, learner, reader, _ = setup("modernbert")
    stored = build_evaluation_set(objective, reader.view, max_rows=18)
    assert stored.num_rows == 16
    optimizer = AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())
    before = score(objective, learner.modules_by_name(), stored)
    assert before == score(objective, learner.modules_by_name(), stored)
    assert {"loss", "accuracy", "alignment", "uniformity"} <= set(before)
    for step in range(30):
        batch = MicroBatch(*objective.make_batch(*reader.read(16 * step, 16)))
        train_step(
            learner,
            optimizer,
            [batch],
            objectives=[objective],
            progress=step / 30,
            learning_rate=1e-2,
            max_grad_norm=1.0,
            dropout_key=fold(KEY, step),
        )
    after = score(objective, learner.modules_by_name(), stored)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["uniformity"] < before["uniformity"] - 0.2


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(ConfigError, match="without dropout") as error:
        setup(dropout=0.0)
    assert "hidden_dropout" in error.value.hint
    with pytest.raises(ConfigError, match="first token"):
        setup("llama", pooling="cls")
    with pytest.raises(IncompatibleError, match="both sides"):
        setup("llama", masked_lm={})
    objective, _, reader, _ = setup(group_rows=4)
    objective.group_rows = 10_000
    with pytest.raises(DataError, match="group"):
        build_evaluation_set(objective, reader.view, max_rows=8)
