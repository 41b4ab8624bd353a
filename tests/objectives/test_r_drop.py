"""R-Drop and smoothness against slow references, and what both refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from seedbed.errors import ConfigError, IncompatibleError
from seedbed.hashing import fold, key_from
from seedbed.objectives.classification import Classification, ClassificationConfig
from seedbed.objectives.contrastive import ContrastiveConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.r_drop import RDrop
from seedbed.objectives.smoothness import Smoothness
from seedbed.objectives.wrapped import divergence
from seedbed.optim import AdamWConfig
from seedbed.training.regularisation import RegularisationConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toy_tasks import ToyTokenizer, toy_task
from toys import RESERVED, VOCABULARY, toy_model, toy_reader

KEY = key_from("dropout of the step")
SMOOTH = {"weight": 2.0, "start_std": 1e-3, "step_size": 1e-2, "epsilon": 2e-2, "num_steps": 1}


def masked(dropout=0.2, **config):
    inner = MaskedLMConfig(mask_rate=0.3, **config).build(VOCABULARY, row_length=16, is_segmented=False)
    model = toy_model("bert", hidden_dropout=dropout)
    return inner, inner.modules(model.trunk, model.head), inner.make_batch(*toy_reader(15).read(40, 6))


def symmetric(one, other):
    """Half of both Kullback-Leibler divergences, by torch."""
    p, q = one.log_softmax(dim=1), other.log_softmax(dim=1)
    forward = F.kl_div(q, p, log_target=True, reduction="none").sum(dim=1)
    backward = F.kl_div(p, q, log_target=True, reduction="none").sum(dim=1)
    return (forward + backward) / 2


def answers(inner, modules, batch, targets, **options):
    (prediction,) = inner.predict(modules, batch, targets, **options).values()
    return prediction.head(prediction.features).float(), prediction.targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_r_drop_is_the_mean_loss_and_the_divergence_of_two_passes(smoothing):
    inner, modules, (batch, targets) = masked(label_smoothing=smoothing)
    objective = RDrop(inner, weight=3.0)
    assert objective.terms == ("masked_lm", "r_drop")
    assert objective.weights(0.5) == {"masked_lm": 1.0, "r_drop": 3.0}
    assert objective.counts(targets)["r_drop"] == objective.counts(targets)["masked_lm"]
    found = objective.losses(modules, batch, targets, dropout_key=KEY)
    one, target = answers(inner, modules, batch, targets, dropout_key=fold(KEY, 0))
    other, _ = answers(inner, modules, batch, targets, dropout_key=fold(KEY, 1))
    weights = torch.ones(len(target.at)) if target.weights is None else target.weights
    losses = [
        F.cross_entropy(logits, target.values, reduction="none", label_smoothing=smoothing)
        for logits in (one, other)
    ]
    assert torch.allclose(found["masked_lm"].loss, ((losses[0] + losses[1]) / 2 * weights).sum(), rtol=1e-5)
    apart = (symmetric(one, other) * weights).sum()
    assert float(apart.detach()) > 0.01
    assert torch.allclose(found["r_drop"].loss, apart, rtol=1e-4)


def test_without_dropout_the_divergence_is_0_and_the_loss_the_plain_one():
    inner, modules, (batch, targets) = masked(dropout=0.0)
    found = RDrop(inner, weight=1.0).losses(modules, batch, targets, dropout_key=KEY)
    plain = inner.losses(modules, batch, targets)["masked_lm"].loss
    assert float(found["r_drop"].loss.detach()) == 0.0
    assert torch.equal(found["masked_lm"].loss, plain)


def test_numbers_are_compared_by_their_squared_difference():
    targets = SimpleNamespace(values=torch.tensor([0.5, 1.0]), weights=None)
    found = divergence(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]]), targets)
    assert found.tolist() == [4.0, 0.25]


def test_classes_of_texts_keep_their_own_loss():
    inner = Classification(
        ClassificationConfig(), RESERVED, row_length=16, is_segmented=False, data=toy_task()
    )
    model = toy_model("bert", vocabulary=RESERVED, hidden_dropout=0.1)
    inner.check(model.config)
    modules = inner.modules(model.trunk, model.head)
    view = inner.view_of(inner.data.splits["train"], ToyTokenizer())
    from seedbed.data.views import RowReader

    batch, targets = inner.make_batch(*RowReader(view, name="examples", seed=0).read(0, 8))
    found = RDrop(inner, weight=1.0).losses(modules, batch, targets, dropout_key=KEY, with_details=True)
    passes = [
        inner.losses(modules, batch, targets, dropout_key=fold(KEY, n), with_details=True)["classification"]
        for n in range(2)
    ]
    assert torch.allclose(found["classification"].loss, (passes[0].loss + passes[1].loss) / 2)
    assert float(found["classification"].sums["correct"]) == pytest.approx(
        sum(float(p.sums["correct"]) for p in passes) / 2
    )


def test_smoothness_is_the_divergence_at_the_worst_place_near():
    """The slow reference: a start, one step of ascent by the largest coordinate of each token, a box."""
    inner, modules, (batch, targets) = masked()
    objective = Smoothness(inner, **SMOOTH)
    found = objective.losses(modules, batch, targets, dropout_key=KEY)
    plain, target = answers(inner, modules, batch, targets, dropout_key=KEY)
    weights = torch.ones(len(target.at)) if target.weights is None else target.weights
    assert torch.allclose(
        found["masked_lm"].loss, inner.losses(modules, batch, targets, dropout_key=KEY)["masked_lm"].loss
    )
    start = objective._start(modules, batch, KEY).requires_grad_()
    assert float(start.detach().std()) == pytest.approx(SMOOTH["start_std"], rel=0.05)

    def apart(delta, reference):
        moved, _ = answers(inner, modules, batch, targets, dropout_key=KEY, embedding_delta=delta)
        return (symmetric(moved, reference) * weights).sum()

    (gradient,) = torch.autograd.grad(apart(start, plain.detach()), start)
    step = SMOOTH["step_size"] * gradient / gradient.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    worst = (start.detach() + step).clamp(-SMOOTH["epsilon"], SMOOTH["epsilon"])
    expected = apart(worst, plain)
    assert torch.allclose(found["smoothness"].loss, expected, rtol=1e-3)
    assert float(expected.detach()) > 2 * float(apart(start, plain).detach()), "a step of ascent went up"


@pytest.mark.parametrize(
    "section",
    [
        {"r_drop": 2.0},
        {"adversarial": {"name": "smart"}},
        {"r_drop": 1.0, "adversarial": {"name": "free_lb"}},
    ],
)
def test_micro_batches_change_rounding_only_and_a_step_repeats(section):
    config = RegularisationConfig.model_validate(section)
    found = []
    for sizes in ([6], [2, 4], [6]):
        inner, modules, _ = masked()
        objective = config.wrap(inner)
        learner = Learner([objective], modules)
        optimizer = AdamWConfig().build(learner.parts.named_parameters())
        start, batches = 40, []
        for size in sizes:
            batches.append(MicroBatch(*objective.make_batch(*toy_reader(15).read(start, size))))
            start += size
        train_step(
            learner,
            optimizer,
            batches,
            objectives=[objective],
            progress=0.5,
            learning_rate=0.0,
            max_grad_norm=0.0,
            dropout_key=KEY,
            perturbation=config.perturbation(),
            embedding_width=32,
        )
        found.append({n: p.grad for n, p in learner.parts.named_parameters() if p.grad is not None})
    whole, cut, again = found
    for name, gradient in whole.items():
        assert torch.equal(gradient, again[name]), name
        scale = max(float(gradient.abs().max()), 1e-6)
        assert float((gradient - cut[name]).abs().max()) < 2e-3 * scale + 1e-6, name


def test_evaluation_and_rows_are_the_plain_objectives():
    """What regularises changes neither what is drawn nor what is scored."""
    inner, _, (batch, targets) = masked()
    objective = RDrop(inner, weight=1.0)
    again, targets_again = objective.make_batch(*toy_reader(15).read(40, 6))
    assert torch.equal(batch.input_ids, again.input_ids)
    assert torch.equal(targets["masked_lm"].at, targets_again["masked_lm"].at)
    assert type(objective.for_evaluation()) is type(inner)
    assert objective.chance("r_drop") == 0.0


def test_what_cannot_be_compared_is_refused():
    inner, _, _ = masked()
    with pytest.raises(ConfigError, match="has none") as error:
        RegularisationConfig(r_drop=1.0).wrap(inner, toy_model("bert").config)
    assert "hidden_dropout" in error.value.hint
    contrastive = ContrastiveConfig(group_rows=4).build(RESERVED, row_length=16, is_segmented=False)
    with pytest.raises(IncompatibleError, match="compare") as refused:
        RegularisationConfig(r_drop=1.0).wrap(contrastive)
    assert refused.value.hint
    with pytest.raises(ValueError, match="one of them"):
        RegularisationConfig.model_validate({"r_drop": 1.0, "adversarial": {"name": "smart"}})
    assert RegularisationConfig().wrap(inner) is inner
    assert RegularisationConfig().perturbation() is None
