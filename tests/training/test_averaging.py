"""Averages of weights: what they hold, what a skipped step does to them, what is evaluated and put back."""

import pytest
import torch

from seedbed.config import validate
from seedbed.errors import ConfigError
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.optim import OPTIMIZERS, AdamWConfig
from seedbed.recipe import Recipe
from seedbed.training.averaging import WeightAverage, adopt_evaluation_weights, evaluation_weights
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.state import TrainingState
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, clone_weights, toy_model, toy_reader

TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def make_state(config=None, **changes):
    objective = MaskedLMConfig(mask_rate=0.3).build(VOCABULARY, row_length=16, is_segmented=False)
    model = toy_model("llama" if changes.get("causal") else "modernbert")
    learner = Learner([objective], [objective.modules(model.trunk, model.head, seed=0)])
    optimizer = (config or AdamWConfig()).build(learner.parts.named_parameters())
    return objective, TrainingState(learner, optimizer)


def train(objective, state, steps):
    reader = toy_reader(objective.raw_row_length)
    for _ in range(steps):
        batch, targets = objective.make_batch(*reader.read(4 * state.window, 4))
        result = train_step(
            state.learner,
            state.optimizer,
            [MicroBatch(batch, targets)],
            objectives=[objective],
            progress=0.5,
            learning_rate=1e-2,
            max_grad_norm=1.0,
        )
        if state.average is not None:
            state.average.update(state.parameters(), state.window, result.is_applied)
        state.window += 1


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_average_is_its_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage(0.75, start=2, every=2)
    expected = None
    for window, value in enumerate([5.0, 6.0, 1.0, 9.0, 3.0, 9.0, 2.0]):
        weight.data.fill_(value)
        average.update({"w": weight}, window, TRUE)
        if window in (2, 4, 6):
            expected = value if expected is None else 0.75 * expected + 0.25 * value
        assert ("w" in average.tensors) == (expected is not None)
    assert average.tensors["w"].item() == pytest.approx(expected)


def test_a_skipped_step_does_not_move_the_average():
    weight = torch.nn.Parameter(torch.tensor([1.0, -0.0]))
    average = WeightAverage(0.5)
    average.update({"w": weight}, 0, TRUE)
    before = average.tensors["w"].clone()
    weight.data.fill_(3.0)
    average.update({"w": weight}, 1, FALSE)
    assert torch.equal(before.view(torch.int32), average.tensors["w"].view(torch.int32))
    average.update({"w": weight}, 2, TRUE)
    assert average.tensors["w"].tolist() == [2.0, 1.5]


@pytest.mark.parametrize("name", ["adamw", "schedule_free_adamw", "schedule_free_sgd"])
def test_evaluation_sees_the_average_and_training_its_own_weights(name):
    objective, state = make_state(OPTIMIZERS[name](learning_rate=1e-2))
    if name == "adamw":
        state.average = WeightAverage(0.9)
    train(objective, state, 5)
    trained = clone_weights(state.learner)
    with evaluation_weights(state):
        evaluated = clone_weights(state.learner)
        if name == "adamw":
            assert same(evaluated, {f"parts.{k}": v for k, v in state.average.tensors.items()})
    assert same(trained, clone_weights(state.learner))
    assert not same(trained, evaluated)
    with pytest.raises(RuntimeError), evaluation_weights(state):
        raise RuntimeError
    assert same(trained, clone_weights(state.learner))
    adopt_evaluation_weights(state)
    assert same(evaluated, clone_weights(state.learner))


def test_without_an_average_nothing_is_copied():
    objective, state = make_state()
    train(objective, state, 1)
    storage = [p.data_ptr() for p in state.learner.parameters()]
    with evaluation_weights(state):
        assert storage == [p.data_ptr() for p in state.learner.parameters()]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_checkpoint_holds_the_average(tmp_path, stop):
    """Also before its start (window 3), when there is none yet."""
    objective, whole = make_state()
    whole.average = WeightAverage(0.8, start=3)
    train(objective, whole, 8)

    objective, first = make_state()
    first.average = WeightAverage(0.8, start=3)
    train(objective, first, stop)
    checkpoints = Checkpoints(tmp_path, inputs={})
    checkpoints.save(first)
    objective, second = make_state()
    second.average = WeightAverage(0.8, start=3)
    checkpoints.load(second, checkpoints.newest())
    train(objective, second, 8 - stop)
    assert same(whole.average.tensors, second.average.tensors)
    assert same(clone_weights(whole.learner), clone_weights(second.learner))


def test_the_mean_of_the_last_weights(tmp_path):
    objective, state = make_state()
    checkpoints = Checkpoints(tmp_path, inputs={})
    weights = []
    for _ in range(5):
        train(objective, state, 2)
        checkpoints.save_for_mean(state, keep=3)
        weights.append(clone_weights(state.learner))
    assert checkpoints.load_mean(state.learner.parts) == [6, 8, 10]
    for name, parameter in state.learner.named_parameters():
        expected = torch.stack([w[name] for w in weights[-3:]]).double().mean(0)
        assert torch.allclose(parameter.double(), expected, atol=1e-7)
    checkpoints.drop_after(7)
    assert checkpoints.load_mean(state.learner.parts) == [6]
    assert same(clone_weights(state.learner), weights[2])


def test_two_averages_are_refused():
    for key, value in (("ema_decay", 0.9), ("average_checkpoints", 3)):
        with pytest.raises(ConfigError, match="schedule_free_sgd averages weights itself"):
            validate(Recipe, {"optim": {"name": "schedule_free_sgd"}, "training": {key: value}}, place="test")
