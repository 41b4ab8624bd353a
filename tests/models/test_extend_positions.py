from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models.extend_positions import extend_positions, interpolated, ntk_theta, repeated
from seedbed.models.huggingface import read_huggingface, write_huggingface
from seedbed.models.language_model import LanguageModel
from small_models import logits_of, native_attention, random_ids, small_model


def batch_of(model: LanguageModel, length: int) -> Batch:
    return Batch(random_ids(2, length), attention=native_attention(model))


def test_tables_are_tiled_and_stretched() -> None:
    table = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    assert repeated(table, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert interpolated(table, 5)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert interpolated(table, 3).equal(table)
    longer = interpolated(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), 15)
    torch.testing.assert_close(longer[1::2], (longer[0:-1:2] + longer[2::2]) / 2)


def test_the_slowest_wave_spans_the_new_length_and_the_fastest_stays() -> None:
    theta = ntk_theta(10_000.0, 4.0, 64)
    slowest = (theta ** (62 / 64)) / (10_000.0 ** (62 / 64))
    assert slowest == pytest.approx(4.0)
    assert ntk_theta(10_000.0, 4.0, 2) == 10_000.0


@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta"])
def test_repetition_keeps_every_row_that_was_short_enough(name: str) -> None:
    model = small_model(name, max_length=20)
    longer = extend_positions(model, 50)
    assert longer.config == model.config.updated(max_length=50)
    assert torch.equal(logits_of(longer, batch_of(model, 20)), logits_of(model, batch_of(model, 20)))
    assert logits_of(longer, batch_of(model, 50)).isfinite().all()
    with pytest.raises(IncompatibleError, match="21 tokens is longer"):
        logits_of(model, batch_of(model, 21))


def test_interpolation_reads_the_old_places_at_their_new_ones() -> None:
    """Anchors: of 20 positions stretched to 39, every second is an old one; so a row read in double steps is the old row."""
    model = small_model("bert", max_length=20)
    longer = extend_positions(model, 39, method="interpolate")
    ids = random_ids(2, 20)
    anchors = torch.arange(0, 39, 2)[None].expand(2, -1)
    torch.testing.assert_close(
        logits_of(longer, Batch(ids, position_ids=anchors)),
        logits_of(model, Batch(ids)),
        atol=1e-4,
        rtol=1e-4,
    )
    assert not torch.allclose(logits_of(longer, Batch(ids)), logits_of(model, Batch(ids)), atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "modernbert"])
def test_rotary_interpolation_reads_the_old_places_at_their_new_ones(name: str) -> None:
    model = small_model(name, max_length=20)
    longer = extend_positions(model, 40, method="interpolate")
    assert longer.config == model.config.updated(max_length=40, rope_scale=2.0)
    again = extend_positions(longer, 80, method="interpolate")
    assert again.config.rope_scale == 4.0
    ids, attention = random_ids(2, 20), native_attention(model)
    places = torch.arange(0, 40, 2)[None]
    torch.testing.assert_close(
        logits_of(longer, Batch(ids, position_ids=places, attention=attention)),
        logits_of(model, Batch(ids, attention=attention)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_local_layers_keep_their_waves() -> None:
    model = small_model("modernbert", max_length=20, local_window=8, global_every_n=4)
    local = ["query.1", "query.2"]
    batch = batch_of(model, 20)
    for method in ("ntk", "interpolate"):
        longer = extend_positions(model, 40, method=method)  # type: ignore[arg-type]
        first = [m.trunk(batch, capture=["query.0"]).captured["query.0"] for m in (model, longer)]
        assert not torch.allclose(*first, atol=1e-3)
        with torch.no_grad():  # silence the global layer, which differs
            for m in (model, longer):
                m.trunk.layers[0].attention.output.weight.zero_()
        a, b = (m.trunk(batch, capture=local).captured for m in (model, longer))
        assert all(torch.equal(a[key], b[key]) for key in local)


@pytest.mark.parametrize(
    "name", ["alibi_encoder", "alibi_decoder", "sinusoidal_encoder", "xlnet", "deberta_v2"]
)
def test_some_schemes_reach_any_length_as_they_are(name: str) -> None:
    model = small_model(name, max_length=20)
    longer = extend_positions(model, 300)
    assert longer.config == model.config.updated(max_length=300)
    assert torch.equal(logits_of(longer, batch_of(model, 20)), logits_of(model, batch_of(model, 20)))
    assert logits_of(longer, batch_of(model, 300)).isfinite().all()
    with pytest.raises(IncompatibleError, match="cannot be extended by 'repeat'"):
        extend_positions(model, 300, method="repeat")


def test_what_makes_no_sense_is_refused() -> None:
    model = small_model("bert", max_length=20)
    with pytest.raises(IncompatibleError, match="would be fewer"):
        extend_positions(model, 19)
    with pytest.raises(IncompatibleError, match="learned positions cannot be extended by 'ntk'") as refused:
        extend_positions(model, 40, method="ntk")
    assert "repeat, interpolate" in (refused.value.hint or "")
    before = {key: p.clone() for key, p in model.named_parameters()}
    extend_positions(model, 40)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    assert model.config.max_length == 20


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bert", "interpolate"),
        ("gpt2", "repeat"),
        ("roberta", "repeat"),
        ("llama", "ntk"),
        ("llama", "interpolate"),
        ("modernbert", "ntk"),
        ("modernbert", "interpolate"),
    ],
)
def test_an_extended_model_opens_in_transformers(name: str, method: str, tmp_path: Path) -> None:
    import transformers

    changes = {"local_window": 8, "global_every_n": 2} if name == "modernbert" else {}
    longer = extend_positions(small_model(name, max_length=20, **changes), 50, method=method)  # type: ignore[arg-type]
    write_huggingface(longer, tmp_path)
    kind = transformers.AutoModelForCausalLM if longer.config.is_causal else transformers.AutoModelForMaskedLM
    theirs: nn.Module = kind.from_pretrained(tmp_path, attn_implementation="eager").eval()
    # Above the special ids, one of which counts as padding for RoBERTa's positions.
    batch = Batch(random_ids(2, 50).clamp(min=3), attention=native_attention(longer))
    with torch.no_grad():
        logits = theirs(input_ids=batch.input_ids).logits
    torch.testing.assert_close(logits, logits_of(longer, batch), atol=1e-4, rtol=1e-4)
    again, _ = read_huggingface(tmp_path)
    assert again.config.rope_scale == longer.config.rope_scale
    torch.testing.assert_close(logits_of(again, batch), logits_of(longer, batch))
