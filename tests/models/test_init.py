from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.models import MODELS, TransformerConfig
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.models.layers.norm import Norm
from small_models import ONE_STACK, TWO_STACKS

D, F, L = 256, 512, 3


def described(name: str, initialisation: str | None, **changes: object) -> TransformerConfig:
    section = MODELS[name].model_validate(
        {"num_layers": L, "hidden_size": D, "ffn_size": F, "max_length": 64, "initialisation": initialisation}
    )
    return section.build(vocab_size=1000).updated(**changes)


def parts(model: LanguageModel) -> dict[str, Tensor]:
    layer = model.trunk.layers[-1]
    q, k, v = layer.attention.qkv.weight.split(D)
    found = {
        "q": q,
        "k": k,
        "v": v,
        "out": layer.attention.output.weight,
        "up": layer.feed_forward.input.weight[:F],
        "down": layer.feed_forward.output.weight,
        "token": model.trunk.embedding.token.weight,
    }
    return {name: weight.detach() for name, weight in found.items()}


STD = math.sqrt(2 / (5 * D))
# The standard deviation of a normal cut at two.
CUT = 0.8796
EXPECTED = {
    "normal": dict.fromkeys(("q", "k", "v", "out", "up", "down", "token"), STD),
    "truncated_normal": dict.fromkeys(("q", "k", "v", "out", "up", "down", "token"), STD * CUT),
    "scaled_residual": {
        **dict.fromkeys(("q", "k", "v", "up", "token"), STD),
        **dict.fromkeys(("out", "down"), STD / math.sqrt(2 * L)),
    },
    "glorot": {
        **dict.fromkeys(("q", "k", "v", "out"), math.sqrt(2 / (D + D))),
        **dict.fromkeys(("up", "down"), math.sqrt(2 / (D + F))),
        "token": STD,
    },
    "he": {
        **dict.fromkeys(("q", "k", "v", "out", "up"), math.sqrt(2 / D)),
        "down": math.sqrt(2 / F),
        "token": STD,
    },
}


@pytest.mark.parametrize("name", ONE_STACK)
@pytest.mark.parametrize("kind", EXPECTED)
def test_spread_of_every_kind(name: str, kind: str) -> None:
    model = build_model(described(name, kind, zero_outputs=False, embedding_std=None), seed=0)
    for part, weight in parts(model).items():
        assert float(weight.std()) == pytest.approx(EXPECTED[kind][part], rel=0.03), part
        assert abs(float(weight.mean())) < 5 * EXPECTED[kind][part] / weight.numel() ** 0.5
    if kind == "truncated_normal":
        assert max(float(w.abs().max()) for w in parts(model).values()) <= 2 * STD + 1e-6
    if kind == "glorot":
        assert float(parts(model)["up"].abs().max()) <= math.sqrt(6 / (D + F))
    for module in model.modules():
        if isinstance(module, Norm) and module.weight is not None:
            assert (module.weight == 1).all()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            assert (parameter == 0).all(), key


@pytest.mark.parametrize("name", ONE_STACK)
def test_a_seed_gives_the_same_weights_and_touches_no_global_state(name: str) -> None:
    config = described(name, None, tie_embeddings=False, query_stream=True)
    models = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        models.append(build_model(config, seed=5))
    first, second = (dict(m.named_parameters()) for m in models)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = dict(build_model(config, seed=6).named_parameters())
    same = [key for key in first if first[key].std(correction=0) > 0 and torch.equal(first[key], other[key])]
    assert same == []


def test_a_given_spread_replaces_the_rule() -> None:
    model = build_model(described("gpt2", "normal", initialisation_std=0.02), seed=0)
    assert float(parts(model)["q"].std()) == pytest.approx(0.02, rel=0.03)
    assert described("gpt2", "normal", hidden_size=768).std == pytest.approx(0.0228, abs=1e-4)


@pytest.mark.parametrize("name", ONE_STACK)
def test_a_new_model_is_about_as_uncertain_as_the_uniform_one(name: str) -> None:
    model = build_model(MODELS[name].model_validate({"preset": "tiny"}).build(vocab_size=1000), seed=0)
    ids = torch.randint(0, 1000, (4, 64))
    hidden = model(Batch(ids, attention="causal" if model.config.is_causal else "full"))
    loss = torch.nn.functional.cross_entropy(
        model.logits(hidden.last).flatten(0, 1), torch.randint(0, 1000, (256,))
    )
    assert abs(float(loss.detach()) - math.log(1000)) < 0.6


def test_zero_outputs_make_a_new_block_pass_its_input_on() -> None:
    model = build_model(described("llama", None, zero_outputs=True), seed=0)
    hidden = model.trunk(
        Batch(torch.arange(12)[None], attention="causal"), capture=["hidden.0", f"hidden.{L}"]
    )
    assert torch.equal(hidden.captured["hidden.0"], hidden.captured[f"hidden.{L}"])
    drawn = build_model(described("llama", None), seed=0)
    assert torch.equal(parts(model)["v"], parts(drawn)["v"])  # the other draws stay what they were


def test_the_token_embedding_may_have_a_spread_of_its_own() -> None:
    model = build_model(described("llama", None, embedding_std=0.003), seed=0)
    assert float(parts(model)["token"].std()) == pytest.approx(0.003, rel=0.03)
    assert float(parts(model)["q"].std()) == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("is_tied", [True, False])
def test_t5_begins_as_its_paper_does(is_tied: bool) -> None:
    """Queries begin smaller by sqrt(K), since nothing scales the scores; embeddings are N(0, 1)."""
    section = MODELS["t5"].model_validate(
        {"num_layers": 2, "hidden_size": D, "ffn_size": F, "tie_embeddings": is_tied}
    )
    model = build_model(section.build(vocab_size=1000), seed=0)
    head_dim = model.config.head_dim
    expected = {
        "encoder.embedding.token.weight": 1.0,
        "relative.weight": D**-0.5,
        "cross_attention.query.weight": (D * head_dim) ** -0.5,
        "cross_attention.key_value.weight": D**-0.5,
        "cross_attention.output.weight": D**-0.5,
        "attention.output.weight": D**-0.5,
        "feed_forward.input.weight": D**-0.5,
        "feed_forward.output.weight": F**-0.5,
        "head.weight": D**-0.5,
    }
    for key, parameter in model.named_parameters():
        if key.endswith("attention.qkv.weight"):
            queries, keys, values = parameter.detach().split(D)
            assert float(queries.std()) == pytest.approx((D * head_dim) ** -0.5, rel=0.03)
            assert float(keys.std()) == pytest.approx(D**-0.5, rel=0.03)
            assert float(values.std()) == pytest.approx(D**-0.5, rel=0.03)
        elif "norm" not in key:
            (std,) = [value for end, value in expected.items() if key.endswith(end)][-1:]
            tolerance = 0.2 if "relative" in key else 0.03
            assert float(parameter.detach().std()) == pytest.approx(std, rel=tolerance), key


@pytest.mark.parametrize("name", TWO_STACKS)
def test_a_new_encoder_decoder_is_about_as_uncertain_as_the_uniform_one(name: str) -> None:
    section = MODELS[name].model_validate({"preset": "tiny"})
    models = [build_model(section.build(vocab_size=1000), seed=seed) for seed in (0, 0, 1)]
    ids, decoder_ids, targets = torch.randint(0, 1000, (3, 4, 64))
    hidden = models[0](Batch(ids, decoder_input_ids=decoder_ids))
    logits = models[0].logits(hidden.last).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, targets.flatten())
    assert abs(float(loss.detach()) - math.log(1000)) < 0.7
    first, second, other = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)
    same = [key for key in first if first[key].std() > 0 and torch.equal(first[key], other[key])]
    assert same == []
