"""Each part of the native block does what its field says. What holds for every family is in `test_transformer.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from seedbed.batch import Batch
from seedbed.models import MODELS
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.models.layers.norm import Norm
from seedbed.optim.groups import GroupRule, is_hidden_matrix, parameter_groups
from small_models import VOCAB, logits_of, random_ids, small_model

FAMILIES = ["native_decoder", "native_encoder"]


def built(name: str, **section: Any) -> LanguageModel:
    config = MODELS[name].model_validate({"num_layers": 3, "hidden_size": 64, "num_heads": 2, **section})
    return build_model(config.build(vocab_size=VOCAB), seed=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_switch_turns_what_depends_on_the_number_of_passes(name: str) -> None:
    few, many = (built(name, many_passes=on).config for on in (False, True))
    assert (few.activation, few.is_gated, few.ffn_size) == ("relu_squared", False, 256)
    assert (many.activation, many.is_gated, many.ffn_size) == ("silu", True, 192)
    assert (few.inner_norm, few.attention_gate, few.zero_outputs) == (False, False, True)
    assert (many.inner_norm, many.attention_gate, many.zero_outputs) == (True, True, False)
    kept = built(name, many_passes=True, is_gated=False, inner_norm=False).config
    assert (kept.is_gated, kept.inner_norm, kept.attention_gate) == (False, False, True)
    assert few.logit_softcap == (15.0 if few.is_causal else 0.0)
    assert few.tie_embeddings
    assert few.residual_scalars
    assert few.value_residual
    assert few.query_key_norm


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_block_passes_its_input_on(name: str) -> None:
    model = built(name)
    batch = Batch(random_ids(2, 9), attention="causal" if model.config.is_causal else "full")
    captured = model.trunk(batch, capture=["hidden.0", "hidden.3"]).captured
    assert torch.equal(captured["hidden.0"], captured["hidden.3"])
    rms = captured["hidden.0"].square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-3, rtol=0)
    # Logits hardly tell tokens apart: the model is about as uncertain as the uniform one.
    assert logits_of(model, batch).log_softmax(-1).max() < -0.4


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_hold_no_weights_and_scalars_never_decay(name: str) -> None:
    model = built(name, many_passes=True)
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    # Embedding, two a layer and two inner ones, final.
    assert len(norms) == 1 + 4 * 3 + 1
    assert all(norm.weight is None and norm.bias is None for norm in norms)
    scalars = {key: p for key, p in model.named_parameters() if key.endswith("_scalar")}
    assert sorted(scalars) == [
        "trunk.layers.0.residual_scalar",
        *(f"trunk.layers.{i}.{k}_scalar" for i in (1, 2) for k in ("residual", "shortcut", "value")),
    ]
    assert all(p.shape == (1,) for p in scalars.values())
    rule = GroupRule(pattern="*_scalar", rate_scale=5.0)
    groups = parameter_groups(model.named_parameters(), weight_decay=0.1, rules=[rule])
    assert {name for group in groups if not group["weight_decay"] for name in group["names"]} == set(scalars)
    assert {name for group in groups if group["rate_scale"] == 5.0 for name in group["names"]} == set(scalars)
    gate = model.trunk.layers[0].attention.gate.weight
    assert not is_hidden_matrix("trunk.layers.0.attention.gate.weight", gate)


def test_queries_and_keys_have_unit_size() -> None:
    model = small_model("native_encoder")
    captured = model.trunk(Batch(random_ids(2, 9)), capture=["query.1", "key.1"]).captured
    for value in captured.values():
        torch.testing.assert_close(value.square().mean(-1), torch.ones(value.shape[:-1]), atol=1e-4, rtol=0)


def test_scalars_weigh_the_stream_and_its_start() -> None:
    """Against the formula, written again: with the branches silenced the stream is a x + b x0, layer by layer."""
    model = small_model("native_encoder")
    with torch.no_grad():
        for layer in model.trunk.layers:
            layer.attention.output.weight.zero_()
            layer.feed_forward.output.weight.zero_()
        captured = model.trunk(Batch(random_ids(2, 9)), capture=["hidden.0", "hidden.3"]).captured
        x = start = captured["hidden.0"]
        for index, layer in enumerate(model.trunk.layers):
            x = x * layer.residual_scalar
            if index:
                x = x + layer.shortcut_scalar * start
    torch.testing.assert_close(x, captured["hidden.3"])


def test_the_query_stream_has_the_same_weights_on_its_way() -> None:
    model = small_model("native_encoder", query_stream=True)
    order = torch.arange(9, dtype=torch.int32).expand(2, -1)
    at = torch.tensor([[1, 5], [7, 2]])
    with torch.no_grad():
        for layer in model.trunk.layers:
            layer.attention.output.weight.zero_()
            layer.feed_forward.output.weight.zero_()
        query = model.trunk(Batch(random_ids(2, 9), attention="order", attend_order=order, query_at=at)).query
        # Normed at the end, so only its direction tells: a start that is scaled up to -1 or 1 times itself.
        x = start = model.trunk.embedding.embed_query(at)
        layers = list(model.trunk.layers)
        layers[2].shortcut_scalar.fill_(-10.0)
        turned = model.trunk(
            Batch(random_ids(2, 9), attention="order", attend_order=order, query_at=at)
        ).query
        for index, layer in enumerate(layers):
            x = x * layer.residual_scalar + (layer.shortcut_scalar * start if index else 0)
    torch.testing.assert_close(turned, F.rms_norm(x, (32,)))
    torch.testing.assert_close(turned, -query)


def test_values_are_mixed_with_the_first_layers() -> None:
    model = small_model("native_encoder")
    batch = Batch(random_ids(2, 9))
    captured = model.trunk(batch, capture=["value.0", "value.2", "hidden.2", "hidden.0"]).captured
    layer = model.trunk.layers[2]
    with torch.no_grad():
        x = layer.residual_scalar * captured["hidden.2"] + layer.shortcut_scalar * captured["hidden.0"]
        v = F.linear(F.rms_norm(x, (32,)), layer.attention.qkv.weight[64:]).view(2, 9, 4, 8).transpose(1, 2)
        share = layer.value_scalar
        torch.testing.assert_close(
            captured["value.2"], (1 - share) * v + share * captured["value.0"], atol=1e-5, rtol=1e-5
        )


def test_gates_start_open_and_scale_a_head() -> None:
    gated, plain = built("native_encoder", many_passes=True), None
    batch = Batch(random_ids(2, 9))
    config = gated.config.updated(attention_gate=False)
    plain = build_model(config, seed=0)
    assert torch.equal(logits_of(gated, batch), logits_of(plain, batch))
    with torch.no_grad():
        gated.trunk.layers[0].attention.gate.weight[1] = 100.0 * torch.randn(64)
    assert not torch.allclose(logits_of(gated, batch), logits_of(plain, batch), atol=1e-4)


def test_the_softcap_holds_logits() -> None:
    model = small_model("native_decoder")
    features = 100 * torch.randn(4, 32)
    free = F.linear(features, model.head.weight)
    assert free.abs().max() > 15
    torch.testing.assert_close(model.logits(features), 15 * torch.tanh(free / 15))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_place": "post"}, "norm_place=pre"),
        ({"num_layer_groups": 1}, "shared layers"),
        ({"norm": "layer", "norm_bias": True}, "norm_bias needs norm_scale"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        built("native_encoder").config.updated(**changes)


@pytest.mark.parametrize("positions", ["alibi", "sinusoidal", "learned", "none"])
def test_every_position_scheme_goes_with_the_block(positions: str) -> None:
    model = built("native_decoder", positions=positions, max_length=32)
    assert logits_of(model, Batch(random_ids(1, 12), attention="causal")).isfinite().all()
