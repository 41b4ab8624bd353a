"""Float16 with a loss scale: the same gradients, overflows that cost a step and no more, and an exact resume."""

import json

import pytest
import torch

from seedbed.commands.console import Console
from seedbed.commands.pretraining import Interrupted
from seedbed.commands.stages import prepare
from seedbed.config import validate
from seedbed.errors import NumericError
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.optim import AdamWConfig
from seedbed.recipe import Recipe
from seedbed.training import loss_scale
from seedbed.training.loop import fit
from seedbed.training.loss_scale import LossScale
from seedbed.training.state import TrainingState
from seedbed.training.step import Learner, MicroBatch, train_step
from tiny_runs import decided, train, values, write_sentences
from toys import VOCABULARY, clone_weights, toy_model, toy_reader

LENGTH = 16


def setup():
    objective = CausalLMConfig().build(VOCABULARY, row_length=LENGTH, is_segmented=False)
    model = toy_model("llama")
    learner = Learner([objective], objective.modules(model.trunk, model.head))
    state = TrainingState(learner, AdamWConfig().build(learner.parts.named_parameters()))
    reader = toy_reader(objective.raw_row_length)
    batches = [MicroBatch(*objective.make_batch(*reader.read(start, 8))) for start in (0, 8)]
    return objective, state, batches


def step(objective, state, batches, *, compute_dtype=torch.float16, max_grad_norm=1.0):
    return train_step(
        state.learner,
        state.optimizer,
        batches,
        objectives=[objective],
        progress=0.5,
        learning_rate=1e-3,
        max_grad_norm=max_grad_norm,
        compute_dtype=compute_dtype,
        loss_scale=state.loss_scale,
    )


def test_it_halves_on_an_overflow_and_doubles_after_2000_good_steps():
    scale = LossScale()
    yes, no = torch.tensor(True), torch.tensor(False)
    told = scale.scale
    scale.update(no)
    assert (float(told), float(scale.scale)) == (65536.0, 32768.0)  # what a step was told stays
    for _ in range(1999):
        scale.update(yes)
    assert scale.values() == {"scale": 32768.0, "num_good": 1999}
    scale.update(yes)
    assert scale.values() == {"scale": 65536.0, "num_good": 0}
    for _ in range(40):
        scale.update(no)
    assert scale.values() == {"scale": LossScale.SMALLEST, "num_good": 0}


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_a_scaled_step_is_the_plain_one(max_grad_norm):
    """In float32 to the bit, since the scale is a power of two; in float16 to its rounding."""
    objective, plain, batches = setup()
    first = step(objective, plain, batches, compute_dtype=torch.float32, max_grad_norm=max_grad_norm)
    objective, scaled, _ = setup()
    scaled.loss_scale = LossScale()
    second = step(objective, scaled, batches, compute_dtype=torch.float32, max_grad_norm=max_grad_norm)
    assert float(first.gradient_norm) == pytest.approx(float(second.gradient_norm), rel=1e-6)
    gradients = {n: p.grad for n, p in plain.parameters().items()}
    for name, parameter in scaled.parameters().items():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-5, atol=1e-9), name
    objective, half, _ = setup()
    half.loss_scale = LossScale()
    third = step(objective, half, batches, max_grad_norm=max_grad_norm)
    assert float(third.gradient_norm) == pytest.approx(float(first.gradient_norm), rel=0.02)
    assert float(third.loss_scale) == 65536.0


def test_an_overflow_is_skipped_and_no_fault():
    objective, state, batches = setup()
    state.loss_scale = LossScale()
    state.loss_scale.load({"scale": 2.0**24, "num_good": 0})
    weights = clone_weights(state.learner)
    seen, after = [], []

    class Watch:
        def on_step(self, record, seconds):
            seen.append(record)

        def is_due(self, state):
            after.append(any(not torch.equal(weights[n], p) for n, p in state.learner.named_parameters()))
            return False

        def wants_stop(self, state):
            return False

        def finish(self, state):
            pass

        def close(self):
            pass

    fit(
        state,
        lambda state: step(objective, state, batches),
        num_windows=12,
        tokens_per_window=256,
        learning_rate=lambda window: 1e-3,
        hooks=[Watch()],
    )
    skipped = [record.is_skipped for record in seen]
    num_skipped = sum(skipped)
    assert num_skipped > 3, "more than the faults that end a run, and the run went on"
    assert skipped == [True] * num_skipped + [False] * (12 - num_skipped)
    assert [record.loss_scale for record in seen[: num_skipped + 1]] == [
        2.0 ** (24 - i) for i in range(num_skipped + 1)
    ]
    assert after == [False] * num_skipped + [True] * (12 - num_skipped)
    assert state.num_skipped == num_skipped
    assert state.skips_in_a_row == 0
    assert seen[-1].step == 12 - num_skipped


@pytest.mark.parametrize("case", ["loss", "smallest", "no scale"])
def test_what_a_scale_cannot_help_is_a_fault(case):
    """A loss that is no number, a gradient that overflows unscaled, and any without a scale."""
    objective, state, batches = setup()
    if case != "no scale":
        state.loss_scale = LossScale()
        state.loss_scale.load({"scale": 1.0 if case == "smallest" else 65536.0, "num_good": 0})
    head = state.learner.parts["head"]
    if case == "loss":
        head.register_forward_hook(lambda module, inputs, out: out * float("nan"))
    else:
        head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NumericError, match="3 steps in a row"):
        fit(
            state,
            lambda state: step(objective, state, batches),
            num_windows=9,
            tokens_per_window=256,
            learning_rate=lambda window: 1e-3,
            hooks=[],
        )


def test_a_stopped_run_goes_on_with_its_scale(tmp_path, monkeypatch):
    """Bit for bit, log lines with their scale included."""
    text = write_sentences(tmp_path / "text", num_documents=10)
    data = values(text, tmp_path / "whole", runtime={"threads": 1, "precision": "float16"})
    prepared = prepare(validate(Recipe, data, place="test"), Console(as_json=True))
    monkeypatch.setattr(loss_scale, "_INITIAL", 2.0**13)  # so that a fresh one is noticed
    train(prepared, data)
    stopped = data | {"run": str(tmp_path / "stopped")}
    with pytest.raises(Interrupted):
        train(prepared, stopped, stop_after=2)
    (state_file,) = (tmp_path / "stopped").glob("pretrain/checkpoints/step-*/state.json")
    saved = json.loads(state_file.read_text())
    assert saved["loss_scale"] == {"scale": 2.0**13, "num_good": 2}
    monkeypatch.undo()
    train(prepared, stopped)
    assert decided(tmp_path / "stopped") == decided(tmp_path / "whole")
    lines = [json.loads(line) for line in decided(tmp_path / "whole")[1].splitlines()]
    assert all(line["loss_scale"] == 2.0**13 for line in lines if line["kind"] == "step")
