"""Compiled steps are eager ones, and nothing of a step but its shapes makes torch compile again."""

import copy

import pytest
import torch

from seedbed.models.heads import limit_logits
from seedbed.models.trunks import compile_stacks, set_recomputing
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.chunked_cross_entropy import compile_losses
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, toy_model, toy_reader

LENGTH = 16


def setup(config, family, **model):
    objective = config.build(VOCABULARY, row_length=LENGTH, is_segmented=False)
    own = toy_model(family, **model)
    learner = Learner([objective], objective.modules(own.trunk, own.head))
    return objective, learner


def steps(objective, learner, *, num_steps=5, num_rows=4):
    """Losses and gradients of steps, each of two micro-batches, with all that changes from step to step."""
    optimizer = AdamWConfig().build(learner.parts.named_parameters())
    reader = toy_reader(objective.raw_row_length, num_documents=60)
    starts = iter(range(0, 10_000, num_rows))
    seen = []
    for window in range(num_steps):
        made: list[MicroBatch] = []
        while len(made) < 2:  # of full rows: padding is a plain field, and another variant
            batch, targets = objective.make_batch(*reader.read(next(starts), num_rows))
            made += [] if batch.has_padding else [MicroBatch(batch, targets)]
        result = train_step(
            learner,
            optimizer,
            made,
            objectives=[objective],
            progress=window / num_steps,
            learning_rate=1e-2 / (window + 1),
            max_grad_norm=1.0,
            dropout_key=torch.tensor(window, dtype=torch.int32),
        )
        gradients = {n: p.grad.clone() for n, p in learner.parts.named_parameters()}
        seen.append((result.losses, gradients))
    return seen


def same(one, other):
    for (losses, gradients), (own, grown) in zip(one, other, strict=True):
        for key, loss in losses.items():
            assert torch.allclose(own[key], loss, rtol=1e-5)
        for name, gradient in gradients.items():
            assert torch.allclose(grown[name], gradient, rtol=1e-3, atol=1e-5), name


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_five_steps_compile_once(monkeypatch):
    """`aot_eager` traces forward and backward pass like the real backend, and writes no code: seconds instead of minutes."""
    config = MaskedLMConfig(mask_rate=0.3)
    objective, eager = setup(config, "bert", num_layers=1, hidden_dropout=0.2)
    expected = steps(objective, eager)
    objective, learner = setup(config, "bert", num_layers=1, hidden_dropout=0.2)
    compile_stacks(learner, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        same(expected, steps(objective, learner))
        # A copy is compiled as well, with its own weights, and needs nothing new: the probe measures what will run.
        scratch = copy.deepcopy(learner)
        with torch.no_grad():
            scratch.parts["trunk"].final_norm = None
            for parameter in scratch.parameters():
                parameter.mul_(1.5)
        steps(objective, scratch, num_steps=1)
    assert dict(torch._dynamo.utils.counters["frames"]) == {"total": 1, "ok": 1}
    assert not torch._dynamo.utils.counters["graph_break"]
    # Evaluation and decoding stay eager: they would compile their own shapes.
    batch = objective.make_batch(*toy_reader(objective.raw_row_length).read(0, 3))[0]
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        learner.parts["trunk"](batch)
    assert dict(torch._dynamo.utils.counters["frames"]) == {"total": 1, "ok": 1}


@pytest.mark.parametrize("limit", [50, 10_000])
def test_the_loss_of_a_portion_compiles_once_for_any_number_of_rows(limit):
    """Compiled, it is taken even if there is one portion only: one pass in place of many."""

    def run(is_compiled):
        objective, learner = setup(CausalLMConfig(z_loss=1e-3), "llama", num_layers=1)
        limit_logits(learner, 4 * 64 * limit)
        if is_compiled:
            compile_losses(learner, backend="aot_eager")
        return steps(objective, learner, num_steps=2)

    expected = run(False)
    torch._dynamo.utils.counters.clear()
    same(expected, run(True))
    assert torch._dynamo.utils.counters["frames"]["ok"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_the_real_backend_gives_the_same(name, recomputes):
    """Dropout included, which is a hash: compiled code multiplies integers that overflow, and must wrap like eager code."""
    config, family = (MaskedLMConfig(), "bert") if name == "masked_lm" else (CausalLMConfig(), "gpt2")
    objective, eager = setup(config, family, hidden_dropout=0.2)
    expected = steps(objective, eager)
    objective, learner = setup(config, family, hidden_dropout=0.2)
    limit_logits(learner, 4 * 64 * 50)
    set_recomputing(learner, recomputes)
    compile_stacks(learner)
    compile_losses(learner)
    with torch._dynamo.config.patch(error_on_recompile=True):
        same(expected, steps(objective, learner))
