"""Prove each clause of the contract between store, objective, model and step with a toy objective.

ELECTRA, XLNet, R-Drop, adversarial training, distillation and mixtures stand on these; each toy is the smallest thing
that would break if its clause did not hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seedbed.batch import Batch, Targets
from seedbed.hashing import fold
from seedbed.objectives.base import Objective, Prediction, Term, features_at
from seedbed.objectives.masked_lm import MaskedLM, MaskedLMConfig
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, toy_model, toy_reader

LENGTH = 16


class Toy(MaskedLM):
    """Masked language modelling, to be varied."""

    def __init__(self) -> None:
        super().__init__(MaskedLMConfig(mask_rate=0.3), VOCABULARY, row_length=LENGTH, is_segmented=False)


def nll(logits, target):
    losses = F.cross_entropy(logits.float(), target.values, reduction="none")
    return (losses if target.weights is None else losses * target.weights).sum()


class WithFirstToken(Toy):
    """Two terms with two denominators that share one forward pass: hidden tokens, and one label a row."""

    terms = ("masked_lm", "row")

    def modules(self, trunk, head, *, seed=0):
        torch.manual_seed(0)
        return {**super().modules(trunk, head), "row_head": nn.Linear(32, 2)}

    def make_batch(self, rows, draws, *, progress=1.0):
        batch, targets = super().make_batch(rows, draws, progress=progress)
        is_even = (rows.ids[:, 0] % 2).long()
        keep = rows.row_ids % 3 != 2  # not every row has a label
        at = torch.arange(len(is_even)) * batch.input_ids.shape[1]
        return batch, {**targets, "row": Targets(at=at[keep], values=is_even[keep])}

    def weights(self, progress):
        return {"masked_lm": 1.0, "row": 0.5 * progress}

    def predict(self, modules, batch, targets, **kwargs):
        hidden = modules["trunk"](batch, **kwargs)
        heads = {"masked_lm": modules["head"], "row": modules["row_head"]}
        return {term: Prediction(features_at(hidden, t), heads[term], t) for term, t in targets.items()}


class WithGenerator(Toy):
    """Two modules: a generator fills the masks, the trunk tells which tokens were replaced (ELECTRA)."""

    terms = ("masked_lm", "replaced")

    def modules(self, trunk, head, *, seed=0):
        generator = toy_model("bert", seed=9, hidden_size=16, num_heads=1)
        torch.manual_seed(1)
        return {
            "trunk": trunk,
            "generator": generator.trunk,
            "generator_head": generator.head,
            "detect": nn.Linear(32, 2),
        }

    def counts(self, targets):
        real = super().counts(targets)["masked_lm"]
        rows = targets["masked_lm"].at.shape[0] // round(0.3 * (LENGTH - 1))
        return {"masked_lm": real, "replaced": float(rows * LENGTH)}

    def losses(self, modules, batch, targets, *, dropout_key=None, embedding_delta=None, with_details=False):
        target = targets["masked_lm"]
        hidden = modules["generator"](batch, dropout_key=dropout_key)
        logits = modules["generator_head"](features_at(hidden, target))
        guess = logits.argmax(dim=1)
        ids = batch.input_ids.clone().reshape(-1)
        original = ids.clone()
        original[target.at] = target.values
        ids[target.at] = guess
        replaced = Batch(ids.reshape(batch.input_ids.shape), row_ids=batch.row_ids)
        found = modules["detect"](modules["trunk"](replaced).last.reshape(-1, 32))
        return {
            "masked_lm": Term(nll(logits, target), {}),
            "replaced": Term(F.cross_entropy(found, (ids != original).long(), reduction="sum"), {}),
        }


class TwoPasses(Toy):
    """Two passes with different dropout, pulled together (R-Drop)."""

    terms = ("masked_lm", "consistency")
    seen: list[torch.Tensor]

    def counts(self, targets):
        real = super().counts(targets)["masked_lm"]
        return {"masked_lm": 2 * real, "consistency": real}

    def losses(self, modules, batch, targets, *, dropout_key=None, embedding_delta=None, with_details=False):
        target = targets["masked_lm"]
        logits = []
        for number in (0, 1):
            key = None if dropout_key is None else fold(dropout_key, number)
            hidden = modules["trunk"](batch, dropout_key=key, embedding_delta=embedding_delta)
            logits.append(modules["head"](features_at(hidden, target)).float())
        self.seen = [value.detach() for value in logits]
        first, second = (value.log_softmax(dim=1) for value in logits)
        divergence = F.kl_div(first, second, log_target=True, reduction="none").sum(dim=1)
        if target.weights is not None:
            divergence = divergence * target.weights
        return {
            "masked_lm": Term(sum(nll(value, target) for value in logits), {}),
            "consistency": Term(divergence.sum(), {}),
        }


class Permuted(Toy):
    """A query stream: predict chosen places from what comes before them in a permutation (XLNet)."""

    terms = ("masked_lm",)

    def make_batch(self, rows, draws, *, progress=1.0):
        order = draws.positions("toy order", LENGTH).argsort(dim=1).to(torch.int32)
        ids = torch.cat([torch.full_like(rows.ids[:, :1], 2), rows.ids], dim=1)
        at = order.argsort(dim=1)[:, -4:].long()  # the last four in the order
        batch = Batch(ids, row_ids=rows.row_ids, attention="order", attend_order=order, query_at=at)
        flat = torch.arange(at.numel())
        return batch, {"masked_lm": Targets(at=flat, values=ids.gather(1, at).reshape(-1), stream="query")}

    def predict(self, modules, batch, targets, **kwargs):
        hidden = modules["trunk"](batch, **kwargs)
        target = targets["masked_lm"]
        return {"masked_lm": Prediction(features_at(hidden, target), modules["head"], target)}


TOYS = {
    "two terms": WithFirstToken,
    "two modules": WithGenerator,
    "two passes": TwoPasses,
    "query stream": Permuted,
}


def setup(kind, **model):
    objective: Objective = kind()
    language_model = toy_model("bert", query_stream=kind is Permuted, **model)
    learner = Learner([objective], objective.modules(language_model.trunk, language_model.head))
    return objective, learner, AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())


def micros(objective, sizes, start=0):
    reader = toy_reader(objective.raw_row_length)
    out = []
    for size in sizes:
        out.append(MicroBatch(*objective.make_batch(*reader.read(start, size))))
        start += size
    return out


def step(objective, learner, optimizer, batches, **changes):
    options = {"objectives": [objective], "progress": 1.0, "learning_rate": 3e-3, "max_grad_norm": 1.0}
    return train_step(learner, optimizer, batches, **{**options, **changes})


def gradients(learner):
    return {n: None if p.grad is None else p.grad.clone() for n, p in learner.named_parameters()}


@pytest.mark.parametrize("name", TOYS)
def test_micro_batches_give_the_same_gradients(name):
    found = []
    for sizes in ([12], [1] * 12, [5, 7]):
        objective, learner, optimizer = setup(TOYS[name], hidden_dropout=0.1 if name == "two passes" else 0.0)
        key = torch.tensor(3, dtype=torch.int32) if name == "two passes" else None
        result = step(
            objective, learner, optimizer, micros(objective, sizes), max_grad_norm=0.0, dropout_key=key
        )
        found.append((result.losses, gradients(learner)))
    for losses, grads in found[1:]:
        for key, value in found[0][0].items():
            assert torch.allclose(value, losses[key], rtol=1e-4), key
        for parameter, gradient in found[0][1].items():
            if gradient is None:
                assert grads[parameter] is None
                continue
            assert (gradient - grads[parameter]).abs().max() <= 3e-4 * gradient.abs().max().clamp(min=1e-4), (
                parameter
            )


@pytest.mark.parametrize("name", TOYS)
def test_each_toy_learns_by_heart(name):
    objective, learner, optimizer = setup(TOYS[name])
    batches = micros(objective, [16])
    losses = [
        sum(
            float(v) for v in step(objective, learner, optimizer, batches, learning_rate=1e-2).losses.values()
        )
        for _ in range(60)
    ]
    assert losses[-1] < 0.55 * losses[0]


def test_two_terms_are_divided_by_their_own_counts():
    objective, learner, optimizer = setup(WithFirstToken)
    batches = micros(objective, [9, 3])
    result = step(objective, learner, optimizer, batches, progress=0.5, max_grad_norm=0.0)
    count = result.counts[0, "row"]
    assert 0 < count < 12
    # The optimizer has moved the learner's weights: compare at fresh ones.
    objective2, fresh, _ = setup(WithFirstToken)
    total = 0.0
    for micro in batches:
        terms = objective2.losses(fresh.parts, micro.batch, micro.targets)
        total = (
            total + terms["masked_lm"].loss / result.counts[0, "masked_lm"] + 0.25 * terms["row"].loss / count
        )
    total.backward()
    for (parameter, gradient), other in zip(gradients(learner).items(), fresh.parameters(), strict=True):
        assert torch.allclose(gradient, other.grad, atol=1e-6), parameter


def test_a_term_without_targets_is_left_out_and_its_head_keeps_no_gradient():
    objective, learner, optimizer = setup(WithFirstToken)
    (micro,) = micros(objective, [4])
    none = torch.zeros(0, dtype=torch.int64)
    empty = MicroBatch(micro.batch, {**micro.targets, "row": Targets(none, none)})
    result = step(objective, learner, optimizer, [empty])
    assert (0, "row") not in result.losses
    assert learner.parts["row_head"].weight.grad is None


def test_two_modules_get_gradients_only_from_their_own_term():
    objective, learner, optimizer = setup(WithGenerator)
    batches = micros(objective, [6])
    objective.weights = lambda progress: {"masked_lm": 0.0, "replaced": 1.0}
    step(objective, learner, optimizer, batches, max_grad_norm=0.0)
    generator = [p.grad for p in learner.parts["generator"].parameters() if p.grad is not None]
    assert all((g == 0).all() for g in generator)
    assert learner.parts["detect"].weight.grad.abs().sum() > 0


def test_two_passes_see_different_masks_and_the_same_ones_again():
    objective, learner, _ = setup(TwoPasses, hidden_dropout=0.3)
    (micro,) = micros(objective, [4])
    key = torch.tensor(11, dtype=torch.int32)
    objective.losses(learner.parts, micro.batch, micro.targets, dropout_key=key)
    first = objective.seen
    assert not torch.allclose(first[0], first[1])
    objective.losses(learner.parts, micro.batch, micro.targets, dropout_key=key)
    assert all(torch.equal(a, b) for a, b in zip(first, objective.seen, strict=True))
    objective.losses(learner.parts, micro.batch, micro.targets)
    assert torch.equal(*objective.seen)  # no key, no dropout, whatever module.training says


class FastGradient:
    """FGM: a clean pass, then one disturbed along its gradient."""

    num_passes = 2

    def __init__(self, first_weight: float = 1.0) -> None:
        self.first_weight = first_weight

    def delta(self, index, batch, previous, gradient, *, key=None):
        if gradient is None:
            return previous
        return 0.5 * gradient / gradient.norm().clamp(min=1e-12)

    def weight(self, index):
        return self.first_weight if index == 0 else 1.0


@pytest.mark.parametrize("first_weight", [1.0, 0.0])
def test_a_perturbation_adds_the_gradients_of_its_passes(first_weight):
    objective, learner, optimizer = setup(Toy)
    batches = micros(objective, [5, 3])
    result = step(
        objective,
        learner,
        optimizer,
        batches,
        max_grad_norm=0.0,
        perturbation=FastGradient(first_weight),
        embedding_width=32,
    )
    count = result.counts[0, "masked_lm"]

    _, fresh, _ = setup(Toy)
    for micro in batches:
        delta = torch.zeros(*micro.batch.input_ids.shape, 32, requires_grad=True)
        clean = (
            objective.losses(fresh.parts, micro.batch, micro.targets, embedding_delta=delta)["masked_lm"].loss
            / count
        )
        if first_weight:
            clean.backward()
            gradient = delta.grad
        else:
            (gradient,) = torch.autograd.grad(clean, delta)
        moved = 0.5 * gradient / gradient.norm()
        (
            objective.losses(fresh.parts, micro.batch, micro.targets, embedding_delta=moved)["masked_lm"].loss
            / count
        ).backward()
    for (parameter, gradient), other in zip(gradients(learner).items(), fresh.parameters(), strict=True):
        assert torch.allclose(gradient, other.grad, atol=2e-6), parameter


def test_a_query_never_sees_the_token_it_predicts():
    objective, learner, _ = setup(Permuted)
    (micro,) = micros(objective, [3])
    before = learner.parts["trunk"](micro.batch).query
    at = micro.batch.query_at
    ids = micro.batch.input_ids.clone()
    last = at[:, -1:]  # the very last in the order: no query may see it
    ids.scatter_(1, last, 5 + (ids.gather(1, last) - 4) % 59)
    changed = Batch(
        ids,
        row_ids=micro.batch.row_ids,
        attention="order",
        attend_order=micro.batch.attend_order,
        query_at=at,
    )
    assert torch.allclose(before, learner.parts["trunk"](changed).query, atol=1e-6)
    ids = micro.batch.input_ids.clone()
    third = at[:, 2:3]
    ids.scatter_(1, third, 5 + (ids.gather(1, third) - 4) % 59)
    changed = Batch(
        ids,
        row_ids=micro.batch.row_ids,
        attention="order",
        attend_order=micro.batch.attend_order,
        query_at=at,
    )
    after = learner.parts["trunk"](changed).query
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 3], after[:, 3], atol=1e-5)


def test_a_mixture_multiplies_terms_by_the_share_of_rows():
    """Two entries in one step: without the share, dividing each by its own count would cancel the weights."""
    one, two = Toy(), WithFirstToken()
    model = toy_model("bert")
    learner = Learner([one, two], two.modules(model.trunk, model.head))
    optimizer = AdamWConfig().build(learner.parts.named_parameters())
    a, b = micros(one, [6])[0], micros(two, [2], start=6)[0]
    batches = [
        MicroBatch(a.batch, a.targets, entry=0, share=0.75),
        MicroBatch(b.batch, b.targets, entry=1, share=0.25),
    ]
    result = train_step(
        learner, optimizer, batches, objectives=[one, two], progress=1.0, learning_rate=0.0, max_grad_norm=0.0
    )
    model2 = toy_model("bert")
    fresh = Learner([one, two], two.modules(model2.trunk, model2.head))
    la = one.losses(fresh.parts, a.batch, a.targets)["masked_lm"].loss / result.counts[0, "masked_lm"]
    lb = two.losses(fresh.parts, b.batch, b.targets)
    total = 0.75 * la + 0.25 * (
        lb["masked_lm"].loss / result.counts[1, "masked_lm"] + 0.5 * lb["row"].loss / result.counts[1, "row"]
    )
    total.backward()
    for (parameter, gradient), other in zip(gradients(learner).items(), fresh.parameters(), strict=True):
        assert torch.allclose(gradient, other.grad, atol=1e-6), parameter


WORKER = """
import os, sys, torch
import torch.distributed as dist
sys.path[:0] = {paths!r}
dist.init_process_group("gloo")
torch.set_num_threads(1)
import test_contract as t
from seedbed.training.parallel import wrapped
objective, learner, optimizer = t.setup(t.WithFirstToken)
mine = t.micros(objective, [4, 1, 2, 5])[dist.get_rank()::2]
with wrapped(learner) as module:
    result = t.step(objective, module, optimizer, mine)
del module
if dist.get_rank() == 0:
    torch.save({{n: p.detach() for n, p in learner.named_parameters()}}, sys.argv[1])
dist.barrier()
dist.destroy_process_group()
"""


def test_two_workers_sum_their_gradients(tmp_path):
    """Micro-batches with different numbers of targets: an average over workers would give other weights."""
    import seedbed

    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(Path(seedbed.__file__).parent.parent)]
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=paths))
    out = tmp_path / "weights"
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29500 + os.getpid() % 2000),
        "WORLD_SIZE": "2",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(out)],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    for worker in workers:
        _, error = worker.communicate(timeout=120)
        assert worker.returncode == 0, error.decode()[-2000:]
    together = torch.load(out, weights_only=True)
    objective, learner, optimizer = setup(WithFirstToken)
    step(objective, learner, optimizer, micros(objective, [4, 1, 2, 5]))
    for name, parameter in learner.named_parameters():
        assert torch.allclose(together[name], parameter, atol=2e-6), name
