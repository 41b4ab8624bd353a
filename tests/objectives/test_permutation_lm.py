import dataclasses

import pytest
import torch
import torch.nn.functional as F
import transformers

from seedbed.data.store import SPECIAL, WORD
from seedbed.errors import IncompatibleError
from seedbed.models import MODELS
from seedbed.models.huggingface import write_huggingface
from seedbed.objectives.permutation_lm import PermutationLMConfig
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, toy_model, toy_reader

UNITS = ["span", "word", "token"]
CONTEXTS = ["full", "permuted"]


def build(row_length=17, *, is_segmented=False, **config):
    return PermutationLMConfig(**config).build(VOCABULARY, row_length=row_length, is_segmented=is_segmented)


def model_of(family, **changes):
    return toy_model(family, **{"query_stream": True, **changes})


def rows_of(count, length=16, start=0, **reader):
    return toy_reader(length, num_documents=60, **reader).read(start, count)


def weights_of(targets):
    return torch.ones(targets.at.shape) if targets.weights is None else targets.weights


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("unit", UNITS)
def test_one_in_six_come_last_in_the_order_and_are_predicted(unit, context):
    rows, draws = rows_of(50, length=48)
    batch, targets = build(49, unit=unit, context=context).make_batch(rows, draws)
    target = targets["permutation_lm"]
    assert target.stream == "query"
    assert batch.query_at.shape == (50, 8)
    weights = weights_of(target).view(50, 8)
    assert weights.mean() > 0.97
    special = torch.cat([torch.ones(50, 1, dtype=torch.bool), (rows.marks & SPECIAL) != 0], dim=1)
    for row in range(50):
        if rows.lengths[row] < 48:
            continue
        at = batch.query_at[row][weights[row] > 0]
        assert torch.equal(target.values.view(50, 8)[row][weights[row] > 0], batch.input_ids[row, at])
        assert not special[row, at].any()
        order = batch.attend_order[row]
        others = torch.ones(49, dtype=torch.bool).scatter(0, at, value=False)
        assert order[at].min() > order[others].max()
        assert len(set(order[at].tolist())) == len(at)
        assert (order[special[row]] == 0).all()
        plain = others & ~special[row]
        if context == "full":
            assert (order[plain] == 0).all()
        else:
            assert len(set(order[plain].tolist())) == int(plain.sum())


def test_spans_have_the_lengths_of_the_released_code():
    """In words: n with a probability in proportion to 1/n, up to 5; spans that touch or are cut blur it a little."""
    rows, draws = toy_reader(256, num_documents=1500).read(0, 300)
    batch, targets = build(257, unit="span").make_batch(rows, draws)
    weights = weights_of(targets["permutation_lm"]).view(300, -1)
    chosen = torch.zeros(300, 257).scatter(1, batch.query_at, weights)
    begins = torch.zeros(300, 257, dtype=torch.bool)
    begins[:, 1:] = (rows.marks & WORD) != 0
    begins[:, 1] = True
    words = int((chosen.bool() & begins).sum())
    starts = int((chosen.bool() & begins & ~torch.roll(chosen.bool(), 1, 1)).sum())
    mean = 5 / (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5)
    assert abs(words / starts / mean - 1) < 0.15


def test_the_order_is_a_uniform_permutation_of_the_targets():
    rows, draws = rows_of(1500, length=32)
    batch, targets = build(33, unit="token", tokens_per_target=6.4).make_batch(rows, draws)
    keep = weights_of(targets["permutation_lm"]).view(1500, -1).all(1)
    order = batch.attend_order.gather(1, batch.query_at)[keep]
    first = order.argmin(1)
    shares = torch.bincount(first, minlength=5) / len(first)
    assert (shares - 0.2).abs().max() < 0.035


@pytest.mark.parametrize("family", ["xlnet", "bert", "modernbert"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_comes_later_never_changes_a_prediction(family, context):
    model = model_of(family)
    with torch.no_grad():
        model.trunk.embedding.query.normal_()
    rows, draws = rows_of(3)
    objective = build(context=context, tokens_per_target=3, unit="token")
    batch, targets = objective.make_batch(rows, draws)

    def predictions(batch):
        with torch.no_grad():
            prediction = objective.predict({"trunk": model.trunk, "head": model.head}, batch, targets)
        return prediction["permutation_lm"].features.view(*batch.query_at.shape, -1)

    before = predictions(batch)
    for place in range(1, 17):
        ids = batch.input_ids.clone()
        ids[:, place] = 5 + (ids[:, place] - 4) % 59
        after = predictions(dataclasses.replace(batch, input_ids=ids))
        for row in range(3):
            own = batch.attend_order[row][batch.query_at[row]]
            is_blind = own <= batch.attend_order[row, place]
            assert torch.allclose(before[row][is_blind], after[row][is_blind], atol=1e-6)
            sees = ~is_blind
            if sees.any():
                assert not torch.allclose(before[row][sees], after[row][sees], atol=1e-6)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("is_segmented", [False, True])
def test_the_loss_is_that_of_transformers(tmp_path, context, is_segmented):
    """XLNetLMHeadModel with `perm_mask` and `target_mapping` built place by place from the definition."""
    torch.manual_seed(0)
    model = model_of("xlnet", num_layers=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    objective = build(33, context=context, is_segmented=is_segmented)
    reader = toy_reader(32, num_documents=60)
    rows, draws = reader.read(0, 6)
    assert rows.is_full
    batch, targets = objective.make_batch(rows, draws)
    target = targets["permutation_lm"]
    modules = {"trunk": model.trunk, "head": model.head}
    with torch.no_grad():
        term = objective.losses(modules, batch, targets)["permutation_lm"]

    write_huggingface(model, tmp_path)
    theirs = transformers.XLNetLMHeadModel.from_pretrained(tmp_path).eval()
    hidden = torch.zeros(6, 33, 33)
    mapping = torch.zeros(6, batch.query_at.shape[1], 33)
    segments = torch.ones(6, 33) if batch.segment_ids is None else batch.segment_ids
    for row in range(6):
        order = batch.attend_order[row].tolist()
        for i in range(33):
            for j in range(33):
                # 1 hides j from i: from its content where j comes later, from its query itself too.
                is_hidden = order[j] > order[i] or (i == j and order[j] > 0)
                hidden[row, i, j] = float(is_hidden or segments[row, i] != segments[row, j])
        for query, at in enumerate(batch.query_at[row].tolist()):
            mapping[row, query, at] = 1
    with torch.no_grad():
        logits = theirs(batch.input_ids, perm_mask=hidden, target_mapping=mapping).logits
    weights = weights_of(target)
    expected = (F.cross_entropy(logits.flatten(0, 1), target.values, reduction="none") * weights).sum()
    assert float(term.loss) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("family", ["xlnet", "bert"])
def test_the_last_content_layer_is_not_needed(family):
    model = model_of(family)
    objective = build()
    batch, targets = objective.make_batch(*rows_of(6))
    target = targets["permutation_lm"]
    whole = model.trunk(batch).query
    modules = {"trunk": model.trunk, "head": model.head}
    assert torch.allclose(
        objective.predict(modules, batch, targets)["permutation_lm"].features,
        whole.flatten(0, 1)[target.at],
        atol=1e-6,
    )


@pytest.mark.parametrize("family", ["xlnet", "bert"])
def test_micro_batches_give_the_same_gradients_and_it_learns_by_heart(family):
    def setup():
        model = model_of(family)
        objective = build(unit="token")
        learner = Learner([objective], objective.modules(model.trunk, model.head))
        return objective, learner, AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())

    def step(objective, learner, optimizer, sizes, **changes):
        micros, start = [], 0
        for size in sizes:
            micros.append(MicroBatch(*objective.make_batch(*rows_of(size, start=start))))
            start += size
        options = {"objectives": [objective], "progress": 1.0, "learning_rate": 1e-2, "max_grad_norm": 1.0}
        return train_step(learner, optimizer, micros, **{**options, **changes})

    found = []
    for sizes in ((12,), (5, 7)):
        objective, learner, optimizer = setup()
        step(objective, learner, optimizer, sizes, max_grad_norm=0.0)
        found.append({n: p.grad for n, p in learner.named_parameters()})
    for name, gradient in found[0].items():
        if gradient is not None:
            close = (gradient - found[1][name]).abs().max() <= 3e-4 * gradient.abs().max().clamp(min=1e-3)
            assert close, name
    silent = [name for name, gradient in found[0].items() if gradient is None]
    assert all(".segment" in name for name in silent), (
        silent
    )  # XLNet's sentence vectors: the batch has no sentences

    objective, learner, optimizer = setup()
    losses = [step(objective, learner, optimizer, (32,)).losses[0, "permutation_lm"] for _ in range(60)]
    assert losses[-1] < 0.3 < 3.5 < losses[0]


def test_models_without_a_query_stream_are_refused():
    with pytest.raises(IncompatibleError, match="query stream") as error:
        build().check(toy_model("bert").config)
    assert "model.name=xlnet" in error.value.hint
    build().check(model_of("bert").config)
    build().check(toy_model("xlnet").config)


def test_short_rows_have_fewer_targets():
    reader = toy_reader(16)
    rows, draws = reader.read(0, reader.num_rows)
    assert not rows.is_full
    objective = build(unit="token")
    batch, targets = objective.make_batch(rows, draws)
    short = int((rows.lengths < 16).nonzero()[0, 0])
    kept = weights_of(targets["permutation_lm"]).view(len(rows.ids), -1)[short].bool()
    assert (batch.query_at[short][kept] <= rows.lengths[short]).all()
    assert objective.counts(targets)["permutation_lm"] == float(weights_of(targets["permutation_lm"]).sum())


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, kind in MODELS.items() if kind.stack == "encoder"])
def test_every_encoder_with_a_query_stream_learns_32_rows_by_heart(family):
    model = model_of(family)
    objective = build(unit="token")
    objective.check(model.config)
    learner = Learner([objective], objective.modules(model.trunk, model.head))
    optimizer = AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())
    micro = MicroBatch(*objective.make_batch(*rows_of(32)))
    for _ in range(100):
        result = train_step(
            learner,
            optimizer,
            [micro],
            objectives=[objective],
            progress=1.0,
            learning_rate=1e-2,
            max_grad_norm=1.0,
        )
    assert float(result.losses[0, "permutation_lm"]) < 0.5
