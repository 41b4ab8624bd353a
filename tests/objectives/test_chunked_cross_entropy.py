"""The loss by portions is the plain one: values and gradients, whatever the portions, the weights and the extras."""

import copy

import pytest
import torch

from seedbed.batch import Targets
from seedbed.models.heads import limit_logits
from seedbed.objectives.base import Prediction, cross_entropy
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.chunked_cross_entropy import loss_and_gradient
from seedbed.optim import AdamWConfig
from seedbed.runtime import autocast
from seedbed.training.budget import saved_bytes
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCAB_SIZE, VOCABULARY, toy_model, toy_reader

N = 37
ROW_BYTES = 4 * VOCAB_SIZE


def problem(family, *, weighted, **model):
    own = toy_model(family, seed=3, **model)
    draw = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(N, 32, generator=draw)
    values = torch.randint(0, VOCAB_SIZE, (N,), generator=draw)
    weights = torch.rand(N, generator=draw) if weighted else None
    with torch.no_grad():
        own.head.weight.copy_(torch.randn(own.head.weight.shape, generator=draw))
        if own.head.bias is not None:
            own.head.bias.copy_(torch.randn(own.head.bias.shape, generator=draw))
    return own.head, features, Targets(torch.arange(N), values, weights)


def answer(head, features, targets, *, rows, dtype=torch.float32, **options):
    """Loss and gradients, with at most so many rows of logits; 0: the plain path."""
    head = copy.deepcopy(head)
    limit_logits(head, rows * ROW_BYTES)
    features = features.clone().requires_grad_()
    with autocast("cpu", dtype):
        loss = cross_entropy(Prediction(features, head, targets), **options).loss
    assert ("_Chunked" in type(loss.grad_fn).__name__) == (0 < rows < N)
    (0.25 * loss).backward()
    return loss.detach(), {"features": features.grad, **{n: p.grad for n, p in head.named_parameters()}}


@pytest.mark.parametrize("rows", [1, 8, N - 1])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"label_smoothing": 0.2, "z_loss": 1e-2}]
)
@pytest.mark.parametrize(("family", "weighted"), [("bert", False), ("gpt2", True)])
def test_values_and_gradients_are_those_of_all_logits(family, weighted, options, rows):
    head, features, targets = problem(family, weighted=weighted)
    expected, gradients = answer(head, features, targets, rows=0, **options)
    loss, own = answer(head, features, targets, rows=rows, **options)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, rtol=1e-4, atol=1e-5), name


def test_capped_logits_have_their_own_gradient():
    head, features, targets = problem("native_decoder", weighted=False)
    assert head.config.logit_softcap
    expected, gradients = answer(head, features, targets, rows=0)
    loss, own = answer(head, features, targets, rows=5)
    assert torch.allclose(loss, expected, rtol=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_as_near_the_truth_as_the_plain_path(dtype):
    head, features, targets = problem("bert", weighted=False)
    _, gradients = answer(head, features, targets, rows=0)
    plain, of_plain = answer(head, features, targets, rows=0, dtype=dtype)
    loss, own = answer(head, features, targets, rows=8, dtype=dtype)
    assert torch.allclose(loss, plain, rtol=1e-4)

    def error(found):
        return max(float((found[n] - g).norm() / g.norm()) for n, g in gradients.items())

    assert error(own) < 1.3 * error(of_plain) + 1e-6


@pytest.mark.parametrize("settings", [(0.0, 0.0, 0.0), (0.1, 1e-2, 15.0)])
def test_a_gpu_finds_the_right_class_by_comparing(settings):
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(N, VOCAB_SIZE, generator=draw)
    values = torch.randint(0, VOCAB_SIZE, (N,), generator=draw)
    losses, gradients = zip(
        *(
            loss_and_gradient(logits, values, None, *settings, by_comparison)
            for by_comparison in (True, False)
        ),
        strict=True,
    )
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_the_plain_path_serves_details_small_losses_and_evaluation():
    head, features, targets = problem("bert", weighted=False)
    limit_logits(head, 4 * ROW_BYTES)
    term = cross_entropy(Prediction(features, head, targets), with_details=True)
    assert term.per_target is not None
    with torch.no_grad():
        portions = cross_entropy(Prediction(features, head, targets)).loss
    assert torch.allclose(portions, term.loss, rtol=1e-6)
    limit_logits(head, N * ROW_BYTES)
    assert "Chunked" not in type(cross_entropy(Prediction(features, head, targets)).loss.grad_fn).__name__


def test_a_step_by_portions_is_the_plain_step_and_keeps_less():
    def run(rows):
        objective = CausalLMConfig().build(VOCABULARY, row_length=16, is_segmented=False)
        model = toy_model("llama")
        learner = Learner([objective], objective.modules(model.trunk, model.head))
        limit_logits(learner, rows * ROW_BYTES)
        reader = toy_reader(objective.raw_row_length)
        batches = [MicroBatch(*objective.make_batch(*reader.read(start, 64))) for start in (0, 64)]
        kept = saved_bytes(learner, batches[0], compute_dtype=torch.float32)
        result = train_step(
            learner,
            AdamWConfig().build(learner.parts.named_parameters()),
            batches,
            objectives=[objective],
            progress=0.5,
            learning_rate=1e-3,
            max_grad_norm=1.0,
        )
        return kept, result, {n: p.grad for n, p in learner.parts.named_parameters()}

    (kept, result, gradients), (fewer, other, own) = run(0), run(128)
    assert float(other.losses[0, "causal_lm"]) == pytest.approx(
        float(result.losses[0, "causal_lm"]), rel=1e-6
    )
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, rtol=1e-3, atol=1e-6), name
    logits = 64 * 16 * ROW_BYTES
    assert kept - fewer > 0.9 * logits
