from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from seedbed.config import commented_yaml
from seedbed.models import MODELS, PRESETS
from seedbed.models.config import TransformerConfig
from seedbed.models.presets import gated_size


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_key_is_the_name_and_every_field_is_described(name: str) -> None:
    section = MODELS[name]()
    assert section.name == name  # type: ignore[attr-defined]
    assert section.build(vocab_size=10).family == name
    for field in type(section).model_fields:
        assert field == "name" or type(section).model_fields[field].description, field
    for field in TransformerConfig.model_fields.values():
        assert field.description
    assert commented_yaml(section).count("preset: mini") == 1


@pytest.mark.parametrize("name", sorted(MODELS))
def test_presets_are_the_sizes_they_say(name: str) -> None:
    for preset, shape in PRESETS.items():
        config = MODELS[name].model_validate({"preset": preset}).build(vocab_size=100)
        assert (config.num_layers, config.hidden_size, config.num_heads) == (
            shape.num_layers,
            shape.hidden_size,
            shape.num_heads,
        )
        assert config.head_dim == 64
        assert config.hidden_dropout == config.attention_dropout == 0


def test_a_gated_block_has_about_as_many_weights_as_a_plain_one() -> None:
    assert [gated_size(d) for d in (128, 256, 512, 768)] == [384, 704, 1408, 2048]
    for width in (128, 256, 512, 768):
        assert 1 <= 3 * gated_size(width) / (8 * width) < 1.13


def test_overrides_replace_the_preset() -> None:
    config = (
        MODELS["llama"]
        .model_validate({"hidden_size": 192, "num_layers": 5, "num_kv_heads": 1, "ffn_size": 100})
        .build(vocab_size=9, special_ids={"bos": 1})
    )
    assert (config.hidden_size, config.num_heads, config.num_layers) == (192, 3, 5)
    assert (config.num_kv_heads, config.ffn_size, config.special_ids) == (1, 100, {"bos": 1})


def test_local_attention_is_for_base_only() -> None:
    for preset in PRESETS:
        config = MODELS["modernbert"].model_validate({"preset": preset}).build(vocab_size=10)
        local = [config.is_local(i) for i in range(config.num_layers)]
        expected = [preset == "base" and i % 3 != 0 for i in range(config.num_layers)]
        assert local == expected
    for preset in ("mini", "base"):
        section = {"preset": preset, "local_window": 0}
        assert MODELS["modernbert"].model_validate(section).build(vocab_size=10).local_window == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 100, "num_heads": 3}, "not a multiple of num_heads 3"),
        ({"preset": "huge"}, "preset"),
        ({"hidden_droput": 0.1}, "hidden_droput"),
        ({"hidden_dropout": 1.0}, "hidden_dropout"),
    ],
)
def test_wrong_sections_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MODELS["bert"].model_validate(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads"),
        ({"head_dim": 7}, "even head_dim"),
        ({"norm": "rms", "norm_bias": True}, "norm_bias"),
        ({"special_ids": {"pad": 100}}, "outside the vocabulary"),
        ({"query_stream": True, "local_window": 4}, "do not go together"),
        ({"position_offset": 2}, "positions=learned only"),
        ({"embedding_size": 8, "head_transform": False}, "needs head_transform"),
        ({"num_layer_groups": 1, "layers_per_group": 3}, "must divide num_layers"),
        ({"layers_per_group": 2}, "needs num_layer_groups"),
        ({"num_layer_groups": 5}, "5 layer groups do not fit in 4 layers"),
    ],
)
def test_wrong_descriptions_are_refused(changes: dict[str, Any], words: str) -> None:
    config = MODELS["modernbert"].model_validate({}).build(vocab_size=100)
    with pytest.raises(ValidationError, match=words):
        config.updated(**changes)


def test_configs_need_no_torch() -> None:
    code = "import sys, seedbed.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_embeddings_of_electra_are_narrow_in_small_sizes_only() -> None:
    widths = [
        MODELS["electra"].model_validate({"preset": p}).build(vocab_size=9).embedding_width for p in PRESETS
    ]
    assert widths == [128, 128, 512, 512, 768]
    albert = [MODELS["albert"].model_validate({"preset": p}).build(vocab_size=9) for p in PRESETS]
    assert {config.embedding_size for config in albert} == {128}
    assert {config.num_stored_layers for config in albert} == {1}


def test_positions_of_roberta_begin_after_padding() -> None:
    assert MODELS["roberta"]().build(vocab_size=9, special_ids={"pad": 0}).position_offset == 1
    assert MODELS["roberta"]().build(vocab_size=9).position_offset == 2
