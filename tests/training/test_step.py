"""The step: exactness over micro-batches, clipping, and what a non-finite gradient leaves untouched."""

import copy

import pytest
import torch

from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.optim import OPTIMIZERS, AdamWConfig, SGDConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, clone_weights, toy_model, toy_reader

LENGTH = 16


def setup(objective_name="masked_lm", optim=None, **model):
    family = "modernbert" if objective_name == "masked_lm" else "llama"
    config = MaskedLMConfig(unit="word", mask_rate=0.3) if objective_name == "masked_lm" else CausalLMConfig()
    objective = config.build(VOCABULARY, row_length=LENGTH, is_segmented=False)
    language_model = toy_model(family, **model)
    learner = Learner([objective], objective.modules(language_model.trunk, language_model.head))
    optimizer = (optim or AdamWConfig()).build(learner.parts.named_parameters())
    return objective, learner, optimizer


def micro_batches(objective, sizes, start=0, **kwargs):
    reader = toy_reader(objective.raw_row_length, **kwargs)
    out = []
    for size in sizes:
        out.append(MicroBatch(*objective.make_batch(*reader.read(start, size))))
        start += size
    return out


def step(objective, learner, optimizer, micros, **changes):
    options = {"objectives": [objective], "progress": 0.5, "learning_rate": 1e-3, "max_grad_norm": 0.0}
    return train_step(learner, optimizer, micros, **{**options, **changes})


@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_one_batch_of_32_equals_32_of_one(name, dropout):
    """Rows include short ones with fewer targets, so a mean of means would differ."""
    gradients = []
    for sizes in ([32], [1] * 32, [20, 12]):
        objective, learner, optimizer = setup(name, hidden_dropout=dropout)
        micros = micro_batches(objective, sizes, start=10)
        result = step(
            objective,
            learner,
            optimizer,
            micros,
            dropout_key=torch.tensor(5, dtype=torch.int32) if dropout else None,
        )
        gradients.append((result, {n: p.grad.clone() for n, p in learner.parts.named_parameters()}))
    (first, whole), *others = gradients
    for result, split in others:
        for key, loss in first.losses.items():
            assert torch.allclose(loss, result.losses[key], rtol=1e-5)
        for parameter, gradient in whole.items():
            scale = gradient.abs().max().clamp(min=1e-6)
            assert ((gradient - split[parameter]).abs().max() / scale) < 2e-4, parameter


def test_losses_are_means_over_targets():
    objective, learner, optimizer = setup()
    micros = micro_batches(objective, [4, 4])
    terms = [objective.losses(learner.parts, m.batch, m.targets)["masked_lm"].loss for m in micros]
    counts = [objective.counts(m.targets)["masked_lm"] for m in micros]
    expected = sum(terms) / sum(counts)
    result = step(objective, learner, optimizer, micros)
    assert torch.allclose(result.losses[0, "masked_lm"], expected.detach())
    assert result.counts[0, "masked_lm"] == sum(counts)


@pytest.mark.parametrize("optim", [AdamWConfig(), SGDConfig()])
def test_a_non_finite_gradient_changes_nothing(optim):
    objective, learner, optimizer = setup(optim=optim)
    micros = micro_batches(objective, [8])
    step(objective, learner, optimizer, micros)
    weights = clone_weights(learner)
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    handle = learner.parts["head"].register_forward_hook(lambda m, i, out: out * torch.tensor(float("nan")))
    result = step(objective, learner, optimizer, micros)
    handle.remove()
    assert not bool(result.is_applied)
    assert all(torch.equal(weights[n], p) for n, p in learner.named_parameters())
    after = optimizer.state_dict()["state"]
    for index, values in moments.items():
        for key, value in values.items():
            assert torch.equal(value, after[index][key]), (index, key)
    assert bool(step(objective, learner, optimizer, micros).is_applied)
    assert any(not torch.equal(weights[n], p) for n, p in learner.named_parameters())


def test_clipping_bounds_the_gradient_and_reports_the_norm_before():
    objective, learner, optimizer = setup(optim=SGDConfig(momentum=0.0, weight_decay=0.0))
    micros = micro_batches(objective, [8])
    free = step(objective, learner, optimizer, micros, learning_rate=0.0)
    clipped = step(objective, learner, optimizer, micros, learning_rate=0.0, max_grad_norm=0.01)
    assert torch.allclose(free.gradient_norm, clipped.gradient_norm)
    total = torch.nn.utils.get_total_norm([p.grad for p in learner.parameters() if p.grad is not None])
    assert abs(float(total) - 0.01) < 1e-5


@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_it_learns_32_rows_by_heart(name):
    objective, learner, optimizer = setup(name, optim=AdamWConfig(weight_decay=0.0))
    micros = micro_batches(objective, [32])
    losses = [
        float(
            sum(
                step(
                    objective, learner, optimizer, micros, learning_rate=1e-2, max_grad_norm=1.0
                ).losses.values()
            )
        )
        for _ in range(150)
    ]
    assert losses[0] > 3.8
    assert losses[-1] < (0.3 if name == "masked_lm" else 1.6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_at_its_default_rate(name):
    config = OPTIMIZERS[name](schedule={"min_warmup_steps": 5})
    objective, learner, optimizer = setup("causal_lm", optim=config)
    micros = micro_batches(objective, [16])
    losses = [
        float(
            step(
                objective,
                learner,
                optimizer,
                micros,
                learning_rate=config.rate(number, 40),
                settings=config.settings(number, 40),
                max_grad_norm=1.0,
            ).losses[0, "causal_lm"]
        )
        for number in range(40)
    ]
    assert losses[-1] < losses[0] - 0.15, losses[::8]


def test_the_first_losses_are_frozen():
    """A golden curve: a refactoring that should not change numbers must not."""
    objective, learner, optimizer = setup()
    losses = []
    for number in range(20):
        micros = micro_batches(objective, [8], start=8 * number)
        result = step(objective, learner, optimizer, micros, learning_rate=5e-3, max_grad_norm=1.0)
        losses.append(float(result.losses[0, "masked_lm"]))
    assert losses == pytest.approx(GOLDEN, abs=2e-3)


GOLDEN = [
    4.3898,
    4.3771,
    4.2901,
    4.3413,
    4.0815,
    4.3079,
    4.2654,
    4.2222,
    4.1261,
    4.1204,
    4.3085,
    4.1451,
    4.1632,
    4.1057,
    4.1497,
    3.8729,
    4.2425,
    3.9930,
    4.2232,
    4.0568,
]


def test_tied_weights_are_updated_once():
    _objective, learner, optimizer = setup()
    names = [n for g in optimizer.param_groups for n in g["names"]]
    assert len(names) == len(set(names)) == len(list(learner.parts.parameters()))
    assert learner.parts["head"].weight is learner.parts["trunk"].embedding.token.weight
