from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError, IntegrityError
from seedbed.models.language_model import LanguageModel
from small_models import ONE_STACK, logits_of, native_attention, random_ids, small_model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ONE_STACK)
def test_a_saved_model_comes_back(name: str, tied: bool, tmp_path: Path) -> None:
    model = small_model(name, tie_embeddings=tied, query_stream=True)
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.config == model.config
    assert (again.head.weight is again.trunk.embedding.token.weight) == tied
    batch = Batch(random_ids(2, 9), attention=native_attention(model))
    assert torch.equal(logits_of(again, batch), logits_of(model, batch))
    stored = load_file(tmp_path / "transformer.safetensors")
    assert ("head.weight" in stored) != tied


def test_a_model_without_a_head_comes_back(tmp_path: Path) -> None:
    model = LanguageModel(small_model("bert").trunk, None)
    model.save(tmp_path)
    assert LanguageModel.load(tmp_path).head is None


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"transformer\.json does not exist"):
        LanguageModel.load(tmp_path)
    small_model("gpt2").save(tmp_path)
    tensors = load_file(tmp_path / "transformer.safetensors")
    renamed = {key.replace("final_norm", "last_norm"): value for key, value in tensors.items()}
    save_file(renamed, tmp_path / "transformer.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        LanguageModel.load(tmp_path)
    assert "trunk.final_norm.bias" in str(caught.value)
    assert "trunk.last_norm.weight" in str(caught.value)
    (tmp_path / "transformer.safetensors").write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match="damaged"):
        LanguageModel.load(tmp_path)
    save_file(tensors, tmp_path / "transformer.safetensors")
    data = json.loads((tmp_path / "transformer.json").read_text())
    (tmp_path / "transformer.json").write_text(json.dumps({**data, "format": 2}))
    with pytest.raises(IncompatibleError, match="format 1"):
        LanguageModel.load(tmp_path)
