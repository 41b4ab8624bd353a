"""Heads of pretraining beside the language model's: parity with Hugging Face's classes, and files of our own where it has none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError, IntegrityError
from seedbed.models import MODELS
from seedbed.models.huggingface import read_huggingface, write_huggingface
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.models.pretraining_heads import EXTRA_HEADS, init_head

logging.getLogger("transformers").setLevel(logging.ERROR)

VOCAB = 61
TOLERANCE = 1e-4
SETTINGS = {
    "vocab_size": VOCAB,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 41,
    "max_position_embeddings": 40,
    "hidden_act": "relu",
}

PLACES = {
    "bert": ("BertForPreTraining", "sentence_pair", True),
    "bert-alone": ("BertForNextSentencePrediction", "sentence_pair", False),
    "albert": ("AlbertForPreTraining", "sentence_pair", True),
    "electra": ("ElectraForPreTraining", "replaced_token", False),
}
"""Hugging Face's classes that have a head of ours, and whether they have the language model's too."""


def make_theirs(name: str) -> Any:
    model_class, _, _ = PLACES[name]
    family = name.split("-")[0]
    torch.manual_seed(4)
    extra = {} if family == "bert" else {"embedding_size": 13}
    config = transformers.AutoConfig.for_model(family, **SETTINGS, **extra)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def extra_logits(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    out = model(input_ids=ids, token_type_ids=types)
    for field in ("seq_relationship_logits", "sop_logits"):
        if field in out:
            return out[field]
    return out.logits


def our_logits(model: LanguageModel, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    hidden = model(Batch(ids, token_type_ids=types)).last
    if "sentence_pair" in model.extras:
        return model.extras["sentence_pair"](hidden[:, 0])
    return model.extras["replaced_token"](hidden.flatten(0, 1)).view(ids.shape)


@pytest.mark.parametrize("name", PLACES)
@torch.no_grad()
def test_heads_with_a_place_open_in_ours_and_return(name: str, tmp_path: Path) -> None:
    model_class, extra, has_head = PLACES[name]
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, left_out = read_huggingface(tmp_path / "theirs")
    assert left_out == {}
    assert list(ours.extras) == [extra]
    assert (ours.head is not None) == has_head
    ids = torch.randint(3, VOCAB, (4, 17), generator=torch.Generator().manual_seed(0))
    types = (torch.arange(17) > 8).long().expand(4, 17)
    expected = extra_logits(theirs, ids, types)
    assert expected.std() > 0.1
    assert (our_logits(ours, ids, types) - expected).abs().max() < TOLERANCE

    write_huggingface(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [model_class]
    back, report = getattr(transformers, model_class).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert (extra_logits(back.eval(), ids, types) - expected).abs().max() < TOLERANCE
    if has_head:
        found = ours.logits(ours(Batch(ids, token_type_ids=types)).last)
        assert (found - theirs(input_ids=ids, token_type_ids=types).prediction_logits).abs().max() < TOLERANCE


@torch.no_grad()
def test_labels_mean_what_they_mean_there() -> None:
    """Their losses with a label equal the cross-entropy of our reading of the label."""
    ids = torch.randint(3, VOCAB, (4, 17), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0])
    theirs = make_theirs("bert-alone")
    out = theirs(input_ids=ids, labels=labels)
    assert torch.nn.functional.cross_entropy(out.logits, labels) == pytest.approx(float(out.loss))
    theirs = make_theirs("electra")
    replaced = torch.randint(0, 2, ids.shape, generator=torch.Generator().manual_seed(1))
    out = theirs(input_ids=ids, labels=replaced)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, replaced.float())
    assert expected == pytest.approx(float(out.loss))


def with_extras(family: str, *names: str, has_head: bool = True) -> LanguageModel:
    section = MODELS[family].model_validate({"preset": "tiny", "max_length": 40})
    config = section.build(vocab_size=VOCAB, special_ids={"pad": 0})
    extras = {name: EXTRA_HEADS[name](config) for name in names}
    for number, head in enumerate(extras.values()):
        init_head(head, config, number)
    model = build_model(config, seed=0)
    return LanguageModel(model.trunk, model.head if has_head else None, extras)


def assert_equal(a: LanguageModel, b: LanguageModel) -> None:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("family", sorted(MODELS))
def test_no_head_is_lost_in_any_family(family: str, has_head: bool, tmp_path: Path) -> None:
    model = with_extras(family, *EXTRA_HEADS, has_head=has_head)
    model.save(tmp_path / "native")
    assert_equal(model, LanguageModel.load(tmp_path / "native"))
    if MODELS[family].native_reason:
        return
    write_huggingface(model, tmp_path / "folder")
    places = MODELS[family].extra_heads(has_head=has_head)
    described = json.loads((tmp_path / "folder" / "seedbed_heads.json").read_text())
    assert set(described["heads"]) == set(EXTRA_HEADS) - set(places)
    again, left_out = read_huggingface(tmp_path / "folder")
    assert left_out == {}
    assert_equal(model, again)


def test_a_folder_written_again_keeps_no_old_heads(tmp_path: Path) -> None:
    write_huggingface(with_extras("modernbert", "replaced_token"), tmp_path)
    assert (tmp_path / "seedbed_heads.safetensors").is_file()
    write_huggingface(with_extras("modernbert"), tmp_path)
    assert not list(tmp_path.glob("seedbed_heads*"))
    assert not read_huggingface(tmp_path)[0].extras


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_huggingface(with_extras("modernbert", "replaced_token"), tmp_path)
    description = tmp_path / "seedbed_heads.json"
    good = description.read_text()
    description.write_text(good.replace("replaced_token", "mystery"))
    with pytest.raises(IncompatibleError, match="unknown heads mystery"):
        read_huggingface(tmp_path)
    description.write_text(good.replace("replaced_token", "sentence_pair"))
    with pytest.raises(IncompatibleError, match="does not fit the model at replaced_token"):
        read_huggingface(tmp_path)
    description.write_text(good.replace('"format": 1', '"format": 2'))
    with pytest.raises(IncompatibleError, match="not of format 1"):
        read_huggingface(tmp_path)
    description.unlink()
    with pytest.raises(IntegrityError, match="not whole"):
        read_huggingface(tmp_path)
