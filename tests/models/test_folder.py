from __future__ import annotations

from pathlib import Path

import pytest

from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.models import MODELS
from seedbed.models.folder import holds_model, read_model, settle_form, write_model
from small_models import logits_of, native_attention, random_ids, small_model


@pytest.mark.parametrize("form", ["huggingface", "seedbed"])
def test_a_model_comes_back_in_either_form(form: str, tmp_path: Path) -> None:
    model = small_model("gpt2")
    assert not holds_model(tmp_path)
    write_model(model, tmp_path, form=form)  # type: ignore[arg-type]
    assert holds_model(tmp_path)
    again, left_out = read_model(tmp_path)
    batch = Batch(random_ids(2, 9), attention=native_attention(model))
    assert logits_of(again, batch).equal(logits_of(model, batch))
    assert left_out == {}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_auto_is_their_form_wherever_there_is_one(name: str) -> None:
    config = small_model(name).config
    is_own = bool(MODELS[name].native_reason)
    assert settle_form(config, "auto") == ("seedbed" if is_own else "huggingface")
    assert settle_form(config, "seedbed") == "seedbed"
    if is_own:
        assert not MODELS[MODELS[name].nearest].native_reason
        with pytest.raises(IncompatibleError, match="no Hugging Face form: no family there") as refused:
            settle_form(config, "huggingface")
        assert MODELS[name].nearest in (refused.value.hint or "")
    else:
        assert settle_form(config, "huggingface") == "huggingface"
        with pytest.raises(IncompatibleError, match="embedding_scale"):
            settle_form(config.updated(embedding_scale=2.0), "auto")


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither config\.json nor transformer\.json"):
        read_model(tmp_path)
