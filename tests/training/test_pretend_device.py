"""A step on a device that is not the host, without one: torch's `meta` device computes shapes, refuses to be read by the host, and
refuses tensors of another device in one operation. What passes here makes no GPU wait, and leaves nothing on the CPU.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch._dynamo
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from seedbed.data.views import RowReader, RowSource
from seedbed.hashing import at_device
from seedbed.models.heads import limit_logits
from seedbed.objectives import OBJECTIVES
from seedbed.optim import OPTIMIZERS
from seedbed.recipe import DEFAULT_MODELS
from seedbed.training.averaging import WeightAverage
from seedbed.training.loss_scale import LossScale
from seedbed.training.regularisation import RegularisationConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toy_tasks import ToyTokenizer, toy_section
from toys import RESERVED, ToySplit, toy_model

LENGTH = 16


REFUSED = {
    "put_",
    "histc",
    "bincount",
    "kthvalue",
    "median",
    "nanmedian",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
}
REFUSED |= {"_embedding_bag_backward", "upsample_bilinear2d_backward", "grid_sampler_2d_backward", "resize_"}
"""From the documentation of `torch.use_deterministic_algorithms`, beside sums of floats along a dimension (cumsum)."""


class Unwanted(TorchDispatchMode):
    """Note what brings tensors from the host to the device: a GPU's step would wait there, since they lie in ordinary memory.

    And what CUDA does in no fixed order, so that a run's deterministic mode ends it.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        if name in REFUSED or (name == "cumsum" and out.is_floating_point()):
            self.seen.append(f"{func}, which the deterministic mode refuses on CUDA")
        read = {a.device.type for a in args if isinstance(a, torch.Tensor) and a.dim()}
        if isinstance(out, torch.Tensor) and out.device.type == "meta" and "cpu" in read:
            self.seen.append(str(func))
        return out


class FromLists(TorchFunctionMode):
    """Note tensors made on the device from numbers of Python: a copy as well, below where the other mode looks."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and out.device.type == "meta":
            self.seen.append(str(func))
        return out


@pytest.fixture(autouse=True)
def _known_to_autocast(monkeypatch):
    """Autocast knows of real devices only."""
    # The compiler looks torch's functions up by identity, once: let it, before they are replaced, for the tests after these.
    torch._dynamo.trace_rules.lookup(torch.is_autocast_enabled)
    asked, real = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and asked(kind))
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, *args, **kw: nullcontext() if kind == "meta" else real(kind, *args, **kw),
    )


def step(
    name,
    tmp_path,
    *,
    optim="muon",
    regularisation=None,
    loss_scale=None,
    logits_bytes=0,
    family=None,
    **model,
):
    """One step of an objective, all of it on the pretend device."""
    objective = toy_section(name, tmp_path).build(RESERVED, row_length=LENGTH, is_segmented=False)
    if regularisation is not None:
        description = toy_model(DEFAULT_MODELS[name], vocabulary=RESERVED, **model).config
        objective = regularisation.wrap(objective, description)
    own = toy_model(family or DEFAULT_MODELS[name], vocabulary=RESERVED, **model)
    learner = Learner([objective], objective.modules(own.trunk, own.head)).to("meta")
    limit_logits(learner, logits_bytes)
    optimizer = OPTIMIZERS[optim]().build(learner.parts.named_parameters())
    view = objective.make_view(RowSource(ToySplit(), tokenizer=ToyTokenizer()))
    reader = RowReader(view, name=objective.view, seed=0)
    batches = []
    for start in (0, 8):
        batch, targets = objective.make_batch(*reader.read(start, 8))
        batches.append(MicroBatch(batch, targets, counts=objective.counts(targets)).to("meta"))
    with Unwanted() as unwanted, FromLists() as lists:
        result = train_step(
            learner,
            optimizer,
            batches,
            objectives=[objective],
            progress=0.5,
            learning_rate=1e-3,
            max_grad_norm=1.0,
            dropout_key=at_device(torch.tensor(5, dtype=torch.int32), "meta"),
            perturbation=None if regularisation is None else regularisation.perturbation(),
            embedding_width=own.config.embedding_width,
            loss_scale=loss_scale,
        )
    assert unwanted.seen == lists.seen == []
    return learner, result


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_step_of_an_objective_reads_nothing(name, tmp_path):
    learner, result = step(name, tmp_path, hidden_dropout=0.1, loss_scale=LossScale("meta"))
    assert result.losses
    assert result.is_applied.device.type == result.gradient_norm.device.type == "meta"
    assert all(loss.device.type == "meta" for loss in result.losses.values())
    average = WeightAverage(0.9)
    for window in range(2):
        average.update(dict(learner.parts.named_parameters()), window, result.is_applied)
    with pytest.raises(RuntimeError):  # what a read would do
        float(result.gradient_norm)


# torch's own fused kernels refuse the device before they run; on CUDA they read the flag there.
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("adamw", "adam", "sgd")])
def test_an_optimizer_of_ours_reads_nothing(name, tmp_path):
    step("masked_lm", tmp_path, optim=name)


@pytest.mark.parametrize(
    "section",
    [
        {"adversarial": {"name": "fgm"}},
        {"adversarial": {"name": "pgd"}},
        {"adversarial": {"name": "free_lb"}},
        {"r_drop": 1.0},
        {"adversarial": {"name": "smart"}},
    ],
    ids=["fgm", "pgd", "free_lb", "r_drop", "smart"],
)
def test_a_regulariser_reads_nothing(section, tmp_path):
    step(
        "masked_lm", tmp_path, regularisation=RegularisationConfig.model_validate(section), hidden_dropout=0.1
    )


@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_a_loss_by_portions_reads_nothing(name, tmp_path):
    step(name, tmp_path, logits_bytes=4 * 80 * 4)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("native_encoder", {"positions": "alibi"}),
        ("native_encoder", {"positions": "sinusoidal"}),
        ("modernbert", {"num_layers": 3, "local_window": 8, "global_every_n": 2}),
        ("albert", {}),  # not DeBERTa, which copies its table of distances, a few kilobytes a pass
    ],
)
def test_a_family_reads_nothing(family, changes, tmp_path):
    step("masked_lm", tmp_path, family=family, **changes)
