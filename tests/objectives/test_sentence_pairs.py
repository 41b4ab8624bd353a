"""What next-sentence and sentence-order prediction owe beyond the contract: frames, labels, loss, learning, export."""

import dataclasses

import numpy as np
import pytest
import torch

from seedbed.config import validate
from seedbed.data.store import DOCUMENT, SENTENCE, SPECIAL, WORD
from seedbed.data.views import RowReader, Rows, RowSource
from seedbed.errors import ConfigError, DataError, IncompatibleError
from seedbed.models import MODELS
from seedbed.models.huggingface import read_huggingface, write_huggingface
from seedbed.models.llama import LlamaConfig
from seedbed.objectives import OBJECTIVES
from seedbed.objectives.sentence_pairs import frame_pairs
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, ToySplit, toy_model

KINDS = ("next_sentence", "sentence_order")
LENGTH = 24
CLS, SEP, MASK, PAD = 2, 3, 4, 0


def build(kind, *, row_length=LENGTH, vocabulary=VOCABULARY, **config):
    config = validate(OBJECTIVES[kind], config, place="test")
    return config.build(vocabulary, row_length=row_length, is_segmented=False)


def reader_of(objective, split=None, seed=0):
    view = objective.make_view(RowSource(split or ToySplit(40), seed=seed))
    return RowReader(view, name=objective.view, seed=seed)


def batch_of(objective, count=64, split=None):
    return objective.make_batch(*reader_of(objective, split).read(0, count))


def test_frames_put_special_tokens_where_bert_has_them():
    rows = Rows(
        ids=torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 0, 0]]),
        marks=torch.tensor([[6, 4, 4, 6, 4], [6, 6, 4, 0, 0]], dtype=torch.uint8),
        lengths=torch.tensor([5, 3]),
        row_ids=torch.arange(2),
        epochs=torch.zeros(2, dtype=torch.int64),
        is_full=False,
        first_lengths=torch.tensor([3, 1]),
        labels=torch.tensor([0, 1]),
    )
    framed = frame_pairs(rows, VOCABULARY)
    assert framed.ids.tolist() == [
        [CLS, 11, 12, 13, SEP, 14, 15, SEP],
        [CLS, 21, SEP, 22, 23, SEP, PAD, PAD],
    ]
    assert framed.lengths.tolist() == [8, 6]
    assert framed.first_lengths.tolist() == [5, 3]
    special = (framed.marks & SPECIAL) != 0
    assert special.tolist() == [[id_ < 5 for id_ in row] for row in framed.ids.tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_hold_pairs_types_padding_and_masks(kind):
    objective = build(kind)
    batch, targets = batch_of(objective)
    assert objective.terms == ("masked_lm", kind)
    pair, masked = targets[kind], targets["masked_lm"]
    assert pair.at.tolist() == [LENGTH * row for row in range(64)]
    assert set(pair.values.tolist()) == {0, 1}
    assert batch.has_padding
    assert not batch.is_segmented
    ids = batch.input_ids.flatten().clone()
    real = slice(None) if masked.weights is None else masked.weights > 0
    ids[masked.at[real]] = masked.values[real]
    assert masked.values[real].min() >= 5  # special tokens are never hidden
    for row, types, inside in zip(ids.reshape(64, -1), batch.token_type_ids, batch.segment_ids, strict=True):
        assert row[0] == CLS
        seps = (row == SEP).nonzero()[:, 0].tolist()
        assert len(seps) == 2
        assert types.nonzero()[:, 0].tolist() == list(range(seps[0] + 1, seps[1] + 1))
        assert inside.nonzero()[:, 0].tolist() == list(range(seps[1] + 1))
        assert (row[seps[1] + 1 :] == PAD).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers_bert_for_pretraining(kind, tmp_path):
    import transformers

    objective = build(kind)
    model = toy_model("bert")
    modules = objective.modules(model.trunk, model.head, seed=3)
    batch, targets = batch_of(objective, 8)
    terms = objective.losses(modules, batch, targets)
    counts = objective.counts(targets)
    ours = sum(float(terms[name].loss.detach()) / counts[name] for name in objective.terms)

    write_huggingface(objective.exported(model, modules), tmp_path / "bert")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "bert")
    labels = torch.full(batch.input_ids.shape, -100).flatten()
    masked = targets["masked_lm"]
    real = slice(None) if masked.weights is None else masked.weights > 0
    labels[masked.at[real]] = masked.values[real]
    with torch.no_grad():
        found = theirs.eval()(
            input_ids=batch.input_ids,
            attention_mask=batch.segment_ids,
            token_type_ids=batch.token_type_ids,
            labels=labels.reshape(batch.input_ids.shape),
            next_sentence_label=targets[kind].values,
        )
    assert float(found.loss) == pytest.approx(ours, abs=1e-4)


def test_the_sentence_order_head_is_alberts(tmp_path):
    import transformers

    objective = build("sentence_order")
    model = toy_model("albert")
    modules = objective.modules(model.trunk, model.head, seed=3)
    batch, targets = batch_of(objective, 8)
    loss = objective.losses(modules, batch, targets)["sentence_order"].loss.detach() / 8
    write_huggingface(objective.exported(model, modules), tmp_path / "albert")
    theirs = transformers.AlbertForPreTraining.from_pretrained(tmp_path / "albert").eval()
    with torch.no_grad():
        found = theirs(
            input_ids=batch.input_ids, attention_mask=batch.segment_ids, token_type_ids=batch.token_type_ids
        ).sop_logits
    assert float(torch.nn.functional.cross_entropy(found, targets["sentence_order"].values)) == pytest.approx(
        float(loss), abs=1e-4
    )


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_head_survives_its_export(family, tmp_path):
    objective = build("sentence_order")
    model = toy_model(family)
    modules = objective.modules(model.trunk, model.head, seed=3)
    write_huggingface(objective.exported(model, modules), tmp_path / family)
    again, _ = read_huggingface(tmp_path / family)
    batch, targets = batch_of(objective, 8)
    loaded = {"trunk": again.trunk, "head": again.head, "sentence_pair": again.extras["sentence_pair"]}
    for name, term in objective.losses(modules, batch, targets).items():
        assert torch.allclose(term.loss, objective.losses(loaded, batch, targets)[name].loss, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_alone_it_masks_nothing_and_trains_no_vocabulary_head(kind):
    objective = build(kind, masked_lm=None)
    batch, targets = batch_of(objective)
    assert objective.terms == (kind,)
    assert targets.keys() == {kind}
    assert not (batch.input_ids == MASK).any()
    model = toy_model("bert")
    modules = objective.modules(model.trunk, model.head, seed=0)
    assert modules.keys() == {"trunk", "sentence_pair"}
    assert objective.exported(model, modules).head is None
    assert objective.speaks == "nothing"
    assert build(kind).speaks == "fill_mask"
    assert objective.for_evaluation().terms == (kind,)


def test_the_pass_is_shared_and_terms_have_their_own_settings():
    objective = build("sentence_order", pair_weight=0.5, masked_lm={"label_smoothing": 0.2, "unit": "word"})
    assert objective.weights(0.0) == {"masked_lm": 1.0, "sentence_order": 0.5}
    model = toy_model("bert")
    modules = objective.modules(model.trunk, model.head, seed=0)
    calls = []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    batch, targets = batch_of(objective)
    smoothed = objective.losses(modules, batch, targets)
    assert len(calls) == 1
    plain = build("sentence_order", masked_lm={"unit": "word"}).losses(modules, batch, targets)
    assert torch.equal(smoothed["sentence_order"].loss, plain["sentence_order"].loss)
    assert not torch.allclose(smoothed["masked_lm"].loss, plain["masked_lm"].loss)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_at_standard_masks_and_full_rows(kind):
    fixed = build(kind, short_rate=0.5, label_smoothing=0.1, masked_lm={"unit": "span"}).for_evaluation()
    assert (fixed.config.short_rate, fixed.config.label_smoothing) == (0.0, 0.0)
    assert (fixed.config.masked_lm.unit, fixed.config.masked_lm.initial_mask_rate) == ("token", None)


def test_what_does_not_fit_is_refused_with_a_hint():
    for name in ("cls_id", "sep_id"):
        with pytest.raises(IncompatibleError, match=r"needs \[CLS\] and \[SEP\]") as refused:
            build("next_sentence", vocabulary=dataclasses.replace(VOCABULARY, **{name: None}))
        assert refused.value.hint
    with pytest.raises(IncompatibleError, match="mask token"):
        build("next_sentence", vocabulary=dataclasses.replace(VOCABULARY, mask_id=None))
    with pytest.raises(IncompatibleError, match="trains an encoder"):
        build("sentence_order").check(LlamaConfig().build(vocab_size=64))
    with pytest.raises(ConfigError, match="span_boundary"):
        build("sentence_order", masked_lm={"unit": "span", "span_boundary": True})
    bare = ToySplit(10)
    bare.marks &= 0xFF ^ SENTENCE
    with pytest.raises(DataError, match="has 0 of 10") as refused:
        build("sentence_order").make_view(RowSource(bare))
    assert refused.value.hint


class Lesson(ToySplit):
    """Documents whose sentences count upwards from one of four topics, so that order and topic can both be learned."""

    def __init__(self, num_documents, seed=0):
        random = np.random.default_rng(seed)
        ids, marks, starts = [], [], []
        for _ in range(num_documents):
            starts.append(len(ids))
            topic = int(random.integers(0, 4))
            for number in range(8):
                mark = SENTENCE | WORD | (DOCUMENT if number == 0 else 0)
                # A word for where the sentence stands, two of its topic.
                ids += [10 + number, 20 + 10 * topic + int(random.integers(0, 10)), 20 + 10 * topic]
                marks += [mark, WORD, WORD]
            ids.append(3)
            marks.append(SPECIAL | SENTENCE | WORD)
        self.ids = np.array(ids, dtype=np.int32)
        self.marks = np.array(marks, dtype=np.uint8)
        self._starts = np.array(starts, dtype=np.int64)
        self.num_tokens, self.num_documents, self.vocab_size = len(ids), num_documents, 64


def train(objective, split, *, steps, family="bert", rate=2e-3):
    model = toy_model(family)
    learner = Learner([objective], objective.modules(model.trunk, model.head, seed=0))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=rate, fused=True)
    reader = reader_of(objective, split)
    for step in range(steps):
        micro = MicroBatch(*objective.make_batch(*reader.read(32 * step, 32)))
        train_step(
            learner,
            optimizer,
            [micro],
            objectives=[objective],
            progress=0.0,
            learning_rate=rate,
            max_grad_norm=1.0,
        )
    return learner.modules_by_name()


def accuracy(objective, modules, split):
    rows, draws = reader_of(objective, split).read(0, 256)
    batch, targets = objective.make_batch(rows, draws)
    with torch.no_grad():
        term = objective.losses(modules, batch, targets, with_details=True)[objective.kind]
    return float(term.sums["correct"]) / 256


@pytest.mark.parametrize(("kind", "least"), [("sentence_order", 0.95), ("next_sentence", 0.8)])
def test_order_and_topic_are_learned(kind, least):
    """Judged on unseen documents; one in four of those from elsewhere has the same topic."""
    objective = build(kind, masked_lm=None, row_length=19)
    modules = train(objective, Lesson(200), steps=120)
    assert accuracy(objective, modules, Lesson(100, seed=1)) > least


ENCODERS = [name for name, kind in MODELS.items() if kind.stack == "encoder" and name != "xlnet"]


def overfits(kind, family):
    """32 rows, again and again: both losses end far under where they began."""
    objective = build(kind, row_length=19, masked_lm={"initial_mask_rate": None})
    model = toy_model(family)
    learner = Learner([objective], objective.modules(model.trunk, model.head, seed=0))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=4e-3, fused=True)
    micro = MicroBatch(*batch_of(objective, 32, Lesson(40)))
    for _ in range(150):
        result = train_step(
            learner,
            optimizer,
            [micro],
            objectives=[objective],
            progress=0.0,
            learning_rate=4e-3,
            max_grad_norm=1.0,
        )
    return {term: float(loss) for (_, term), loss in result.losses.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_32_rows_are_learned_by_heart(kind):
    losses = overfits(kind, "bert")
    assert losses["masked_lm"] < 0.5
    assert losses[kind] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_32_rows_are_learned_by_heart_in_every_encoder(kind, family):
    losses = overfits(kind, family)
    assert losses["masked_lm"] < 1.0
    assert losses[kind] < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_same_gradients(kind):
    objective = build(kind)
    model = toy_model("bert")
    gradients = []
    for sizes in ([12], [5, 4, 3]):
        learner = Learner([objective], objective.modules(model.trunk, model.head, seed=0))
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.0, fused=True)
        micros, start = [], 0
        for size in sizes:
            micros.append(MicroBatch(*objective.make_batch(*reader_of(objective).read(start, size))))
            start += size
        train_step(
            learner,
            optimizer,
            micros,
            objectives=[objective],
            progress=0.0,
            learning_rate=0.0,
            max_grad_norm=0.0,
        )
        gradients.append({name: p.grad.clone() for name, p in learner.named_parameters()})
    for name, whole in gradients[0].items():
        assert torch.allclose(whole, gradients[1][name], atol=1e-6), name
