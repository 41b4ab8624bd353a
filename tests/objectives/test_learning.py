"""Every objective in every architecture it fits: it overfits 32 rows, and micro-batches change rounding only."""

from __future__ import annotations

import pytest

from seedbed.data.views import RowReader, RowSource
from seedbed.hashing import key_from
from seedbed.models import MODELS
from seedbed.objectives import OBJECTIVES
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toy_tasks import ToyTokenizer, toy_section
from toys import RESERVED, ToySplit, toy_model

LENGTH = 16
ROWS = 32
STEPS = 120
# Terms whose floor is not zero: a generator's samples stay surprising, in-batch rivals stay alike, teachers stay unsure.
SHARES = {"replaced_token": 0.6, "contrastive": 0.6, "distillation": 0.8}


def fitting(name: str, family: str) -> bool:
    return MODELS[family].stack in OBJECTIVES[name].fits


FAST = [(name, kind.default_model) for name, kind in OBJECTIVES.items()]
REST = [
    (name, family)
    for name in OBJECTIVES
    for family in MODELS
    if fitting(name, family) and (name, family) not in FAST
]


def assembled(name, family, folder, **changes):
    """An objective, its learner and its reader."""
    section = toy_section(name, folder, MODELS[family].stack)
    objective = section.build(RESERVED, row_length=LENGTH, is_segmented=False)
    if name == "permutation_lm" and family != "xlnet":
        changes["query_stream"] = True
    model = toy_model(family, vocabulary=RESERVED, **changes)
    objective.check(model.config)
    learner = Learner([objective], objective.modules(model.trunk, model.head, seed=0))
    reader = RowReader(
        objective.make_view(RowSource(ToySplit(60), tokenizer=ToyTokenizer())), name=objective.view, seed=0
    )
    return objective, learner, reader


def micro(objective, reader, start, count):
    return MicroBatch(*objective.make_batch(*reader.read(start, count)))


def overfit(name, family, folder):
    objective, learner, reader = assembled(name, family, folder, hidden_dropout=needed_dropout(name))
    optimizer = AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())
    rows = min(ROWS, reader.num_rows)
    batch = micro(objective, reader, 0, rows - rows % objective.group_rows)
    losses = []
    for step in range(STEPS):
        result = train_step(
            learner,
            optimizer,
            [batch],
            objectives=[objective],
            progress=1.0,
            learning_rate=1e-2 * min(1.0, (step + 1) / 10) * (1 - step / STEPS),
            max_grad_norm=1.0,
            dropout_key=key_from("overfit") if needed_dropout(name) else None,
        )
        losses.append(sum(float(result.scales[key] * loss) for key, loss in result.losses.items()))
    return losses


def needed_dropout(name: str) -> float:
    return 0.1 if name == "contrastive" else 0.0


@pytest.mark.parametrize(("name", "family"), FAST)
def test_it_overfits_32_rows(name, family, tmp_path):
    losses = overfit(name, family, tmp_path)
    assert losses[-1] < SHARES.get(name, 0.35) * losses[0], (losses[0], losses[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), REST)
def test_it_overfits_32_rows_in_every_architecture(name, family, tmp_path):
    losses = overfit(name, family, tmp_path)
    assert losses[-1] < max(0.6, SHARES.get(name, 0.6)) * losses[0], (losses[0], losses[-1])


@pytest.mark.parametrize(
    ("name", "family", "dropout"),
    [(*pair, rate) for pair in FAST for rate in (0.0, 0.1) if rate >= needed_dropout(pair[0])],
)
def test_micro_batches_give_the_gradients_of_the_batch(name, family, dropout, tmp_path):
    """Cut anywhere between groups, with dropout and without: the same sums."""
    found = []
    for parts in (1, 2, 4):
        objective, learner, reader = assembled(name, family, tmp_path, hidden_dropout=dropout)
        optimizer = AdamWConfig().build(learner.parts.named_parameters())
        size = max(8 // parts, objective.group_rows)
        total = max(8, 2 * objective.group_rows)
        batches = [micro(objective, reader, start, size) for start in range(0, total, size)]
        if parts == 1 and total > size:
            batches = [micro(objective, reader, 0, total)]
        train_step(
            learner,
            optimizer,
            batches,
            objectives=[objective],
            progress=0.5,
            learning_rate=0.0,
            max_grad_norm=0.0,
            dropout_key=key_from("dropout") if dropout else None,
        )
        found.append({n: p.grad for n, p in learner.parts.named_parameters() if p.grad is not None})
    whole, *others = found
    for other in others:
        assert other.keys() == whole.keys()
        for parameter, gradient in whole.items():
            scale = max(float(gradient.abs().max()), 1e-6)
            assert float((gradient - other[parameter]).abs().max()) < 1e-4 * scale + 1e-7, parameter
