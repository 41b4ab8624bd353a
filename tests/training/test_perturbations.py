"""Adversarial passes against their definitions: norms, directions, balls, and the mean of the gradients on the way up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.hashing import key_from
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.optim import AdamWConfig
from seedbed.training.perturbations import FGM, PGD, FreeLB, norms, project
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, clone_weights, toy_model, toy_reader

LENGTH = 16
WIDTH = 32
KEY = key_from("dropout of the step")
KINDS = [FGM(0.5), PGD(0.5, 0.2, 3), FreeLB(0.3, 0.1, 3, 0.1)]


def setup(family="bert", segmented=False, **model):
    config = CausalLMConfig() if family in ("gpt2", "llama") else MaskedLMConfig(mask_rate=0.3)
    objective = config.build(VOCABULARY, row_length=LENGTH, is_segmented=segmented)
    language_model = toy_model(family, **model)
    learner = Learner([objective], objective.modules(language_model.trunk, language_model.head))
    return objective, learner, AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())


def micros(objective, sizes, start=30):
    reader, out = toy_reader(objective.raw_row_length), []
    for size in sizes:
        out.append(MicroBatch(*objective.make_batch(*reader.read(start, size))))
        start += size
    return out


def step(objective, learner, optimizer, batches, perturbation, **changes):
    options = {
        "progress": 0.5,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "dropout_key": KEY,
        "embedding_width": WIDTH,
    }
    return train_step(
        learner,
        optimizer,
        batches,
        objectives=[objective],
        perturbation=perturbation,
        **{**options, **changes},
    )


def gradients(learner):
    return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


def batch_of_segments():
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    return Batch(
        torch.ones(2, 6, dtype=torch.int64), segment_ids=segments, is_segmented=True, has_padding=True
    )


def test_norms_are_of_each_segment_or_of_the_row():
    batch = batch_of_segments()
    values = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    found = norms(values, batch)[..., 0]
    assert torch.allclose(found[0, :3], values[0, :3].norm().expand(3))
    assert torch.allclose(found[0, 3:5], values[0, 3:5].norm().expand(2))
    assert torch.allclose(found[1], values[1].norm().expand(6))
    whole = norms(values, replace(batch, is_segmented=False))[..., 0]
    assert torch.allclose(whole[0], values[0].norm().expand(6))


@pytest.mark.parametrize("segmented", [False, True])
def test_fgm_moves_each_text_along_its_gradient_by_epsilon(segmented):
    batch = replace(batch_of_segments(), is_segmented=segmented)
    gradient = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1)) * 1e-25
    delta = FGM(0.7).delta(1, batch, torch.zeros(2, 6, 3), gradient)
    assert not delta[0, 5].any(), "padding is never disturbed"
    texts = (
        [(0, slice(0, 3)), (0, slice(3, 5)), (1, slice(0, 6))]
        if segmented
        else [(0, slice(0, 5)), (1, slice(0, 6))]
    )
    for row, place in texts:
        assert float(delta[row, place].norm()) == pytest.approx(0.7, rel=1e-5)
        cosine = torch.cosine_similarity(
            delta[row, place].flatten(), 1e25 * gradient[row, place].flatten(), dim=0
        )
        assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    assert not FGM(0.7).delta(1, batch, torch.zeros(2, 6, 3), torch.zeros(2, 6, 3)).any()


def test_a_projection_is_onto_the_ball_and_leaves_its_inside_alone():
    batch = batch_of_segments()
    inside = torch.full((2, 6, 3), 0.01)
    assert torch.equal(project(inside, batch, 1.0), inside)
    outside = project(100 * inside, batch, 0.5)
    assert torch.allclose(norms(outside, batch), torch.full((2, 6, 1), 0.5))
    assert torch.equal(project(100 * inside, batch, 0.0), 100 * inside)


class Watched:
    """Remember the disturbances of a perturbation."""

    def __init__(self, inner):
        self.inner, self.deltas, self.num_passes = inner, [], inner.num_passes

    def delta(self, *args, **options):
        self.deltas.append(self.inner.delta(*args, **options))
        return self.deltas[-1].clone()

    def weight(self, index):
        return self.inner.weight(index)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_the_gradient_is_the_weighted_sum_over_passes(kind, family):
    """The slow reference: each pass by itself, at the disturbances its own gradients lead to."""
    objective, learner, optimizer = setup(family, hidden_dropout=0.1)
    (batch,) = micros(objective, [5])
    watched = Watched(kind)
    result = step(objective, learner, optimizer, [batch], watched)
    (term,) = objective.terms
    count = result.counts[0, term]

    fresh_objective, fresh, _ = setup(family, hidden_dropout=0.1)
    expected = {n: torch.zeros_like(p) for n, p in fresh.named_parameters()}
    delta = watched.deltas[0].clone()
    for index in range(kind.num_passes):
        assert torch.allclose(delta, watched.deltas[index], atol=1e-5), index
        delta = delta.requires_grad_()
        options = {"dropout_key": KEY, "embedding_delta": delta}
        loss = fresh_objective.losses(fresh.parts, batch.batch, batch.targets, **options)[term].loss / count
        names = [n for n, _ in fresh.named_parameters()]
        *own, slope = torch.autograd.grad(loss, [*fresh.parameters(), delta], allow_unused=True)
        for name, gradient in zip(names, own, strict=True):
            if gradient is not None:
                expected[name] += kind.weight(index) * gradient
        size = {FGM: 0.5, PGD: 0.2, FreeLB: 0.1}[type(kind)]
        direction = slope / slope.flatten(1).norm(dim=1)[:, None, None]
        delta = size * direction if isinstance(kind, FGM) else delta.detach() + size * direction
        bound = kind.epsilon / delta.flatten(1).norm(dim=1)[:, None, None]
        delta = (delta * bound.clamp(max=1.0)).detach()
    for name, gradient in gradients(learner).items():
        assert torch.allclose(gradient, expected[name], atol=3e-6), name
    assert sum(kind.weight(i) for i in range(kind.num_passes)) == pytest.approx(
        1.0 if isinstance(kind, FreeLB) else 2.0
    )


def test_pgd_trains_at_the_text_and_at_the_end_only():
    assert [PGD(num_steps=3).weight(i) for i in range(4)] == [1.0, 0.0, 0.0, 1.0]


def test_free_lb_starts_at_random_by_row_and_step():
    kind, batch = FreeLB(10.0, 0.1, 3, 0.3), batch_of_segments()
    previous = torch.zeros(2, 6, 100)

    def start(key, rows):
        return kind.delta(0, replace(batch, row_ids=torch.tensor(rows)), previous, None, key=key_from(key))

    one = start(1, [7, 8])
    assert torch.equal(one, start(1, [7, 8]))
    assert torch.equal(one[0], start(1, [7, 9])[0])
    assert not torch.equal(one[1], start(1, [7, 9])[1])
    assert not torch.equal(one, start(2, [7, 8]))
    assert not one[0, 5].any()
    assert float(norms(one, batch)[1, 0]) == pytest.approx(0.3 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_micro_batches_change_rounding_only(kind):
    found = []
    for sizes in ([6], [2, 4], [1] * 6):
        objective, learner, optimizer = setup(hidden_dropout=0.1)
        result = step(objective, learner, optimizer, micros(objective, sizes), kind)
        found.append((result, gradients(learner)))
    (first, whole), *others = found
    for result, cut in others:
        assert torch.allclose(first.losses[0, "masked_lm"], result.losses[0, "masked_lm"], rtol=1e-5)
        for name, gradient in whole.items():
            scale = max(float(gradient.abs().max()), 1e-6)
            # The key of a linear shift of keys has no gradient but rounding, hence the absolute part.
            assert float((gradient - cut[name]).abs().max()) < 2e-3 * scale + 1e-6, name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_a_gradient_that_is_not_finite_changes_nothing(kind):
    objective, learner, optimizer = setup()
    before = clone_weights(learner)
    handle = learner.parts["head"].register_forward_hook(lambda m, i, out: out * torch.tensor(float("inf")))
    result = step(objective, learner, optimizer, micros(objective, [4]), kind, learning_rate=1e-3)
    handle.remove()
    assert not bool(result.is_applied)
    assert all(torch.equal(before[n], p) for n, p in learner.named_parameters())


def test_narrow_embeddings_are_disturbed_in_their_own_width():
    objective, learner, optimizer = setup("albert", embedding_size=16)
    assert bool(
        step(objective, learner, optimizer, micros(objective, [4]), FGM(), embedding_width=16).is_applied
    )


def test_an_objective_that_ignores_the_disturbance_is_refused():
    objective, learner, optimizer = setup()
    plain = objective.predict
    objective.predict = lambda *a, embedding_delta=None, **k: plain(*a, **k)
    for kind in KINDS:
        with pytest.raises(IncompatibleError, match="disturb"):
            step(objective, learner, optimizer, micros(objective, [4]), kind)
