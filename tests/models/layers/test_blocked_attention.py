"""Attention by blocks of queries: the values and gradients of whole products under the same mask, whatever is left out."""

from __future__ import annotations

import pytest
import torch

from seedbed.batch import Batch
from seedbed.models.layers import attention, blocked_attention
from seedbed.models.layers.attention import attend, form_for
from seedbed.models.layers.blocked_attention import UNLIMITED, Reach
from small_models import native_attention, random_ids, small_model

REACHES = [UNLIMITED, Reach(None, 0), Reach(40, 40), Reach(40, 0), Reach(None, 3), Reach(0, 0)]


def inputs(*, queries=300, keys=300, heads=4, groups=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(keys)
    made = [
        torch.randn(2, count, length, 8, generator=generator).to(dtype).requires_grad_()
        for count, length in ((heads, queries), (groups, keys), (groups, keys))
    ]
    return *made, torch.randn(2, heads, queries, 8, generator=generator).to(dtype)


def within(reach: Reach, queries: int, keys: int) -> torch.Tensor:
    """The mask a reach stands for, (1, 1, T, S)."""
    ahead = torch.arange(keys)[None] - (torch.arange(queries)[:, None] + keys - queries)
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if reach.before is not None:
        allowed &= ahead >= -reach.before
    if reach.after is not None:
        allowed &= ahead <= reach.after
    return torch.zeros(1, 1, queries, keys, dtype=torch.float64).masked_fill(~allowed, float("-inf"))


def documents(rows: int, length: int) -> torch.Tensor:
    """A bias that hides other documents, one that differs by row, (rows, 1, T, T)."""
    ids = (torch.rand(rows, length, generator=torch.Generator().manual_seed(3)) < 0.02).cumsum(1)
    bias = torch.zeros(rows, 1, length, length, dtype=torch.float64)
    return bias.masked_fill(ids[:, None, :, None] != ids[:, None, None, :], float("-inf"))


def agree(q, k, v, g, bias, reach, mask, **tolerance):
    ours = blocked_attention.blocked_attention(q, k, v, bias, reach=reach, scale=0.3)
    plain, _ = attend(q, k, v, mask if bias is None else bias + mask, scale=0.3)
    torch.testing.assert_close(ours, plain, **tolerance)
    found = torch.autograd.grad(ours, (q, k, v), g)
    for a, b in zip(found, torch.autograd.grad(plain, (q, k, v), g), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("kept", [0, 1024], ids=["recomputed", "kept"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_it_is_attention_under_the_mask(monkeypatch, reach, groups, kept):
    monkeypatch.setattr(blocked_attention, "_KEPT", kept)
    q, k, v, g = inputs(groups=groups)
    agree(q, k, v, g, None, reach, within(reach, 300, 300))


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_a_bias_by_row_comes_on_top(reach):
    q, k, v, g = inputs()
    agree(q, k, v, g, documents(2, 300), reach, within(reach, 300, 300))


@pytest.mark.parametrize("reach", [UNLIMITED, Reach(None, 0), Reach(40, 0)], ids=str)
def test_queries_after_a_cached_past(reach):
    q, k, v, g = inputs(queries=140, keys=333)
    agree(q, k, v, g, None, reach, within(reach, 140, 333))


def test_rows_longer_than_blocks_allow_take_larger_ones(monkeypatch):
    monkeypatch.setattr(blocked_attention, "_SUMS", 2)
    causal = Reach(None, 0)
    q, k, v, g = inputs(queries=700, keys=700)
    assert [b.last for b in blocked_attention._blocks(700, 700, causal)] == [384, 700]
    agree(q, k, v, g, None, causal, within(causal, 700, 700))


def test_keys_out_of_reach_are_left_out():
    causal = blocked_attention._blocks(512, 512, Reach(None, 0))
    assert [(b.low, b.high) for b in causal] == [(0, 128), (0, 256), (0, 384), (0, 512)]
    windowed = blocked_attention._blocks(1024, 1024, Reach(64, 64))
    assert all(b.high - b.low <= 256 for b in windowed)


def test_bfloat16_is_nearly_as_close_as_whole_products():
    """The gradients of keys and values are summed over four blocks, rounded each time."""
    q, k, v, g = inputs(queries=512, keys=512, dtype=torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    reach = Reach(None, 0)
    mask = within(reach, 512, 512)
    exact, _ = attend(*wide, mask, scale=0.3)
    expected = torch.autograd.grad(exact, wide, g.double())
    errors = []
    for mixed in (
        blocked_attention.blocked_attention(q, k, v, None, reach=reach, scale=0.3),
        attend(q, k, v, mask.bfloat16(), scale=0.3)[0],
    ):
        found = (mixed, *torch.autograd.grad(mixed, (q, k, v), g))
        errors.append(
            [
                float((a.detach().double() - b.detach()).norm() / b.detach().norm())
                for a, b in zip(found, (exact, *expected), strict=True)
            ]
        )
    assert all(ours < 1.4 * whole for ours, whole in zip(*errors, strict=True)), errors


def test_it_is_taken_in_long_rows_on_a_cpu():
    causal = Reach(None, 0)
    assert form_for(queries=512, keys=512, device_type="cpu") == "blocked"
    assert form_for(queries=256, keys=256, device_type="cpu") == "batched"
    assert form_for(queries=256, keys=256, device_type="cpu", reach=causal) == "blocked"
    assert form_for(queries=1, keys=512, device_type="cpu", reach=causal) == "fused"
    assert form_for(queries=512, keys=512, device_type="cuda", reach=causal) == "fused"
    learned = torch.zeros(1, 4, 512, 512, requires_grad=True)
    assert form_for(queries=512, keys=512, device_type="cpu", bias=learned) == "fused"


@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {}),
        ("llama", {"num_kv_heads": 2}),
        ("bert", {}),
        ("modernbert", {"local_window": 64, "global_every_n": 2}),
        ("alibi_encoder", {}),
        ("alibi_decoder", {}),
        ("relative_encoder", {}),
    ],
)
def test_models_do_not_notice(monkeypatch, name, changes, is_segmented):
    model = small_model(name, **changes)
    segments = torch.ones(2, 320, dtype=torch.int32)
    if is_segmented:
        segments[0, 150:], segments[1, 33:], segments[1, 290:] = 2, 2, 3
    batch = Batch(
        random_ids(2, 320),
        segment_ids=segments,
        is_segmented=is_segmented,
        attention=native_attention(model),
    )
    forms = []

    def noting(**situation):
        forms.append(form_for(**situation))
        return forms[-1]

    results = []
    for choose in (noting, lambda **situation: "batched"):
        monkeypatch.setattr("seedbed.models.transformer.form_for", choose)
        model.zero_grad()
        last = model.trunk(batch).last
        last.square().sum().backward()
        results.append([last.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert ("blocked" in forms) == (name != "relative_encoder"), "its bias is learned"
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-4, atol=2e-4 * float(plain.abs().max()))


def test_probabilities_wanted_are_those_of_whole_products():
    model = small_model("gpt2")
    batch = Batch(random_ids(1, 320), attention="causal")
    seen = model.trunk(batch, capture=["attention.0"]).captured["attention.0"]
    assert seen.shape == (1, 4, 320, 320)
    torch.testing.assert_close(seen.sum(-1), torch.ones(1, 4, 320))
    assert not seen.triu(1).any()
    assert attention.form_for(queries=320, keys=320, device_type="cpu") == "blocked"
