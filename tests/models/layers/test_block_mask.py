"""Block-sparse attention: chosen where it is right, and the same as attention with a mask.

Uncompiled it computes all pairs, forward and backward, in the same order of arguments, with the same masks: what is compared here.
torch refuses the backward pass on a CPU for the compiled kernel's sake; the test lifts that.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module

from seedbed.batch import Batch
from seedbed.models import transformer
from seedbed.models.layers import attention
from seedbed.models.layers.block_mask import takes_flex
from seedbed.models.trunks import compile_stacks, use_flex
from toys import toy_model

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

USUAL = {
    "device_type": "cuda",
    "length": 512,
    "head_dim": 64,
    "attention": "causal",
    "is_training": True,
    "has_bias": False,
}


def test_it_is_taken_in_training_on_a_gpu_where_blocks_are_empty():
    assert takes_flex(**USUAL)
    assert takes_flex(**USUAL | {"attention": "full"})


@pytest.mark.parametrize(
    "change",
    [
        {"device_type": "cpu"},
        {"device_type": "mps"},
        {"length": 128},
        {"head_dim": 8},
        {"attention": "order"},
        {"is_training": False},
        {"has_bias": True},
    ],
    ids=str,
)
def test_and_nowhere_else(change):
    assert not takes_flex(**USUAL | change)


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Take the path whenever it is not for the device's sake that it would be left alone; note that it was taken."""
    taken = []

    def choose(**situation):
        taken.append(takes_flex(**situation | {"device_type": "cuda", "length": 1024}))
        return taken[-1]

    monkeypatch.setattr(transformer, "takes_flex", choose)
    monkeypatch.setattr(attention, "_BATCHED_LENGTH", 0)  # where a CPU would multiply plainly
    monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)
    return taken


def trunk_of(family, *, with_flex, **changes):
    trunk = toy_model(family, num_heads=2, max_length=40, **changes).trunk
    if with_flex:
        use_flex(trunk)
        assert callable(trunk.flex)
        trunk.flex = flex_module.flex_attention
    return trunk


def batch_of(*, is_segmented, has_padding, causal):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 64, (3, 40), generator=draw)
    segments = torch.ones(3, 40, dtype=torch.int32)
    if is_segmented:
        segments[0, 13:], segments[1, 1:], segments[1, 30:] = 2, 2, 3
    if has_padding:
        segments[2, 33:] = 0
    return Batch(
        ids,
        segment_ids=segments,
        is_segmented=is_segmented,
        has_padding=has_padding,
        attention="causal" if causal else "full",
    )


@pytest.mark.parametrize(
    ("family", "changes", "kind"),
    [
        ("bert", {}, {"is_segmented": True, "has_padding": False, "causal": False}),
        ("llama", {"num_kv_heads": 1}, {"is_segmented": True, "has_padding": True, "causal": True}),
        (
            "modernbert",
            {"num_layers": 3, "global_every_n": 2, "local_window": 8},
            {"is_segmented": True, "has_padding": True, "causal": False},
        ),
        (
            "modernbert",
            {"num_layers": 3, "global_every_n": 2, "local_window": 8},
            {"is_segmented": False, "has_padding": True, "causal": False},
        ),
    ],
)
def test_hidden_states_and_gradients_are_those_of_a_mask(on_a_cpu, family, changes, kind):
    batch, answers = batch_of(**kind), []
    real = batch.segment_ids > 0
    for with_flex in (False, True):
        trunk = trunk_of(family, with_flex=with_flex, **changes)
        last = trunk(batch).last[real]  # padding attends padding, and nobody reads it
        weights = torch.linspace(-1, 1, last.numel()).view_as(last)
        (last * weights).sum().backward()
        answers.append((last.detach(), {n: p.grad for n, p in trunk.named_parameters()}))
    assert on_a_cpu == [True]
    (plain, gradients), (sparse, own) = answers
    assert torch.allclose(sparse, plain, atol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, rtol=1e-3, atol=1e-4), name


def test_a_query_stream_and_captured_probabilities_keep_their_mask(on_a_cpu):
    trunk = trunk_of("bert", with_flex=True)
    batch = batch_of(is_segmented=True, has_padding=False, causal=False)
    hidden = trunk(batch, capture=["attention.0"])
    assert hidden.captured["attention.0"].shape == (3, 2, 40, 40)
    assert on_a_cpu == [False]


def test_it_melts_into_a_compiled_step(monkeypatch):
    """One graph, without a break, that serves other documents unchanged; traced to the backward pass, not written as code."""
    monkeypatch.setattr(transformer, "takes_flex", lambda **situation: True)
    monkeypatch.setattr(attention, "_BATCHED_LENGTH", 0)
    monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    kind = {"is_segmented": True, "has_padding": False, "causal": True}
    plain = trunk_of("llama", with_flex=False, num_layers=1)
    sparse = trunk_of("llama", with_flex=False, num_layers=1)
    use_flex(sparse)
    compile_stacks(sparse, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shift in range(3):
            batch = batch_of(**kind)
            batch = replace(batch, segment_ids=batch.segment_ids.roll(shift, 0))
            answers = []
            for trunk in (plain, sparse):
                trunk.zero_grad()
                last = trunk(batch).last
                last.square().sum().backward()
                answers.append((last.detach(), [p.grad.clone() for p in trunk.parameters()]))
            (last, gradients), (other, own) = answers
            assert torch.allclose(other, last, atol=1e-5)
            assert all(
                torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(own, gradients, strict=True)
            )
    assert dict(torch._dynamo.utils.counters["frames"]) == {"total": 1, "ok": 1}
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
