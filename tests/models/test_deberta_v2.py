"""DeBERTa against `transformers` beyond what every family is tested for: buckets in long rows, its second head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models.huggingface import read_huggingface, write_huggingface
from small_models import random_ids, small_model

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 300,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 16,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}


def make_theirs(**changes: Any) -> Any:
    torch.manual_seed(3)
    config = transformers.DebertaV2Config(**{**SHAPE, **changes})
    theirs = transformers.DebertaV2ForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return theirs


@pytest.mark.parametrize("max_relative_positions", [-1, 40])
def test_long_rows_use_the_far_buckets(max_relative_positions: int, tmp_path: Path) -> None:
    theirs = make_theirs(max_relative_positions=max_relative_positions)
    theirs.save_pretrained(tmp_path)
    ours, _ = read_huggingface(tmp_path)
    ids = torch.randint(0, 61, (2, 290), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = theirs(ids).logits - ours.logits(ours(Batch(ids)).last)
        assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("says_so", [True, False])
def test_the_released_form_of_the_head_is_read(says_so: bool, tmp_path: Path) -> None:
    """The released folders hold `lm_predictions`, and a config that does not say so: `transformers` drops that head."""
    theirs = make_theirs(legacy=False)
    theirs.save_pretrained(tmp_path)
    if not says_so:
        data = json.loads((tmp_path / "config.json").read_text())
        del data["legacy"]
        (tmp_path / "config.json").write_text(json.dumps(data))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["mask_predictions.dense.weight"] = torch.zeros(24, 24)
    tensors["deberta.embeddings.position_embeddings.weight"] = torch.zeros(300, 24)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours, left_out = read_huggingface(tmp_path)
    assert set(left_out) == {"mask_predictions.dense.weight", "deberta.embeddings.position_embeddings.weight"}
    write_huggingface(ours, tmp_path / "back")
    back = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "back").eval()
    ids = random_ids(2, 20)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (ours.logits(ours(Batch(ids)).last) - expected).abs().max() < 1e-4
        assert (back(ids).logits - expected).abs().max() < 1e-4


def test_distances_matter_and_absolute_places_do_not() -> None:
    model = small_model("deberta_v2")
    ids = random_ids(1, 12)
    plain = model(Batch(ids)).last
    with torch.no_grad():
        model.trunk.distance_embedding.weight.zero_()
    assert not torch.allclose(model(Batch(ids)).last, plain, atol=1e-2)
    # Without distances the row is a bag: its tokens in another order give the same vectors in that order.
    torch.testing.assert_close(model(Batch(ids.flip(1))).last.flip(1), model(Batch(ids)).last)
    with pytest.raises(IncompatibleError, match="distances only"):
        model(Batch(ids, position_ids=torch.arange(12)[None]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_distance": 0}, "needs max_distance"),
        ({"content_to_position": False, "position_to_content": False}, "need each other"),
        ({"position_buckets": 64, "max_distance": 20}, "leave no bucket"),
        ({"num_kv_heads": 2}, "no grouped queries"),
        ({"positions": "rope"}, "rope"),
    ],
)
def test_wrong_descriptions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        small_model("deberta_v2").config.updated(**changes)
