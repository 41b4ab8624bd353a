from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models import MODELS
from seedbed.models.grow import stack_layers, widen
from seedbed.models.huggingface import read_huggingface, write_huggingface
from seedbed.models.language_model import LanguageModel
from small_models import logits_of, native_attention, random_ids, small_model

SINGLE = [name for name in sorted(MODELS) if small_model(name).config.stack != "encoder_decoder"]
DEEP = [name for name in SINGLE if not small_model(name).config.num_layer_groups]
PRE_NORM = [name for name in DEEP if small_model(name).config.norm_place == "pre"]
WIDE = [name for name in SINGLE if small_model(name).config.attention_kind == "dot_product"]


def batch_of(model: LanguageModel) -> Batch:
    return Batch(random_ids(2, 12), attention=native_attention(model))


def weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", PRE_NORM)
def test_identity_growth_gives_the_same_logits_to_the_bit(name: str) -> None:
    model = small_model(name)
    deeper = stack_layers(model, 7, how="identity")
    assert deeper.config == model.config.updated(num_layers=7)
    assert torch.equal(logits_of(deeper, batch_of(model)), logits_of(model, batch_of(model)))
    # The added layers are copies that can learn: only what they write is silent.
    added, copied = deeper.trunk.layers[4], model.trunk.layers[1]
    assert torch.equal(added.feed_forward.input.weight, copied.feed_forward.input.weight)
    assert not added.feed_forward.output.weight.any()


def test_identity_growth_keeps_a_pattern_of_local_layers() -> None:
    model = small_model("modernbert", local_window=6, global_every_n=2)
    deeper = stack_layers(model, 5, how="identity")
    assert torch.equal(logits_of(deeper, batch_of(model)), logits_of(model, batch_of(model)))


@pytest.mark.parametrize("name", DEEP)
def test_stacked_layers_are_the_copies_they_say(name: str) -> None:
    model = small_model(name)
    for how, sources in (("stack", [0, 1, 2, 0, 1]), ("interleave", [0, 0, 1, 1, 2])):
        deeper = stack_layers(model, 5, how=how)  # type: ignore[arg-type]
        for layer, source in zip(deeper.trunk.layers, sources, strict=True):
            ours = dict(model.trunk.layers[source].named_parameters())
            for part, value in layer.named_parameters():
                if part in ours:
                    assert torch.equal(value, ours[part]), part
                else:  # the first layer has no such weight
                    assert source == 0
        assert not torch.allclose(
            logits_of(deeper, batch_of(model)), logits_of(model, batch_of(model)), atol=1e-2
        )
        assert logits_of(deeper, batch_of(model)).isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", WIDE)
def test_widening_keeps_the_logits(name: str, factor: int, tied: bool) -> None:
    changes: dict[str, Any] = {"num_kv_heads": 2} if name in ("llama", "native_decoder") else {}
    model = small_model(name, tie_embeddings=tied, **changes)
    before = weights(model)
    wider = widen(model, factor=factor)
    config = wider.config
    assert config.hidden_size == factor * model.config.hidden_size
    assert (config.num_heads, config.head_dim) == (factor * model.config.num_heads, model.config.head_dim)
    assert config.tie_embeddings == tied
    expected = logits_of(model, batch_of(model))
    torch.testing.assert_close(logits_of(wider, batch_of(model)), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.05
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("name", WIDE)
def test_feed_forward_blocks_take_any_size(name: str) -> None:
    model = small_model(name)
    wider = widen(model, ffn_size=101)
    assert wider.config == model.config.updated(ffn_size=101)
    torch.testing.assert_close(
        logits_of(wider, batch_of(model)), logits_of(model, batch_of(model)), atol=1e-4, rtol=1e-4
    )


def test_every_part_of_the_native_block_survives_widening() -> None:
    model = small_model(
        "native_encoder",
        inner_norm=True,
        attention_gate=True,
        is_gated=True,
        norm_scale=True,
        positions="learned",
    )
    wider = widen(model, factor=2)
    torch.testing.assert_close(
        logits_of(wider, batch_of(model)), logits_of(model, batch_of(model)), atol=1e-4, rtol=1e-4
    )
    with pytest.raises(IncompatibleError, match="multiple of 48"):
        widen(model, ffn_size=101)


def test_noise_tells_copies_apart_and_hardly_moves_the_logits() -> None:
    model = small_model("llama")
    plain, noisy = widen(model, factor=2), widen(model, factor=2, noise=0.01, seed=1)
    for part in ("attention.qkv.weight", "feed_forward.input.weight"):
        a = dict(plain.trunk.layers[0].named_parameters())[part]
        b = dict(noisy.trunk.layers[0].named_parameters())[part]
        moved = (a != b).any(1)
        assert int(moved.sum()) == a.shape[0] // 2
        assert not moved[: 32 if "qkv" in part else 48].any()
    change = (logits_of(noisy, batch_of(model)) - logits_of(model, batch_of(model))).std()
    assert 0 < change < 0.1 * logits_of(model, batch_of(model)).std()
    same = widen(model, factor=2, noise=0.01, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(same.parameters(), noisy.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in WIDE if not MODELS[name].native_reason])
def test_grown_models_are_of_their_family(name: str, tmp_path: Path) -> None:
    model = widen(small_model(name), factor=2)
    if not model.config.num_layer_groups:
        model = stack_layers(model, 4)
    write_huggingface(model, tmp_path)
    again, _ = read_huggingface(tmp_path)
    torch.testing.assert_close(logits_of(again, batch_of(model)), logits_of(model, batch_of(model)))


def test_grown_models_open_in_transformers(tmp_path: Path) -> None:
    import transformers

    model = widen(stack_layers(small_model("bert"), 4), factor=2)
    write_huggingface(model, tmp_path)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = theirs(input_ids=batch_of(model).input_ids).logits
    torch.testing.assert_close(logits, logits_of(model, batch_of(model)), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_grown_is_refused_with_a_hint() -> None:
    bert = small_model("bert")
    refusals = [
        (lambda: stack_layers(bert, 3), "are not more"),
        (lambda: stack_layers(bert, 6, how="identity"), "post-norm"),
        (lambda: stack_layers(small_model("albert"), 6), "share their weights"),
        (lambda: stack_layers(small_model("t5"), 6), "encoder-decoders"),
        (lambda: widen(bert), "nothing wider"),
        (lambda: widen(bert, ffn_size=40), "nothing wider"),
        (lambda: widen(small_model("xlnet"), factor=2), "attention_kind=xlnet"),
        (lambda: widen(small_model("alibi_encoder"), factor=2), "alibi positions"),
        (lambda: widen(small_model("sinusoidal_encoder"), factor=2), "sinusoidal positions"),
        (lambda: widen(small_model("llama", has_final_norm=False), factor=2), "tied head"),
    ]
    for act, words in refusals:
        with pytest.raises(IncompatibleError, match=words) as refused:
            act()
        assert refused.value.hint
