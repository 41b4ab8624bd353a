"""The short door: what it returns, and what it refuses."""

from __future__ import annotations

import pytest

import seedbed
from seedbed.api import LoadedModel
from seedbed.errors import DataError, IncompatibleError, IntegrityError
from seedbed.models.huggingface import write_huggingface
from seedbed.models.language_model import build_model
from seedbed.tokenizer.tokenizer import Tokenizer
from toys import toy_model

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *"天地玄黄",
    "the",
    "cat",
    "##s",
    ".",
]


def make(tmp_path, family):
    folder = tmp_path / family
    folder.mkdir()
    words = [*WORDS, *(f"w{n}" for n in range(64 - len(WORDS)))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path / "vocab.txt", lowercase=True)
    model = toy_model(family)
    write_huggingface(model, folder)
    tokenizer.save(folder, kind=model.config.stack)
    return folder


def test_fill_mask_proposes_for_every_mask(tmp_path):
    model = seedbed.load(make(tmp_path, "bert"))
    masks = model.fill_mask("the [MASK] 天[MASK]", top_k=4)
    assert [len(m) for m in masks] == [4, 4]
    for candidates in masks:
        probabilities = [c.probability for c in candidates]
        assert probabilities == sorted(probabilities, reverse=True)
        assert all("[CLS]" not in c.text and "[SEP]" not in c.text for c in candidates)
    first = masks[0][0]
    assert first.token.removeprefix("##") in first.text


def test_embed_gives_one_vector(tmp_path):
    model = seedbed.load(make(tmp_path, "modernbert"))
    vector = model.embed("the cats.")
    assert vector.shape == (32,)
    assert not vector.equal(model.embed("the cat."))


def test_generate_starts_with_the_prompt_and_stops_at_the_models_length(tmp_path):
    model = seedbed.load(make(tmp_path, "llama"))
    text = model.generate("the cat", max_new_tokens=500, temperature=0.0)
    assert text.startswith("the cat")
    assert len(model.tokenizer.encode(text)) <= 64


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_writes_a_text_of_its_own(tmp_path, family):
    import transformers

    folder = make(tmp_path, family)
    model = seedbed.load(folder)
    text = model.generate("the [MASK] cat", max_new_tokens=9, temperature=0.0)
    assert "the cat" not in text
    assert len(model.tokenizer.encode(text, allow_special=True)) <= 9
    drawn = [model.generate("the [MASK]", max_new_tokens=9, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert model.embed("the cats.").shape == (32,)
    # Text in, text out, as transformers does it with the same folder.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = tokenizer("the [MASK] cat", return_tensors="pt")
    assert inputs["input_ids"][0, -1] == model.tokenizer.separator_id
    out = theirs.generate(input_ids=inputs["input_ids"], max_new_tokens=9, do_sample=False)[0].tolist()
    frame = {0, 2, 3}
    assert model.tokenizer.decode([i for i in out if i not in frame], skip_special=False) == text
    with pytest.raises(IncompatibleError, match="cannot fill masks"):
        model.fill_mask("the [MASK]")
    with pytest.raises(DataError, match="64 positions"):
        model.generate("a " * 100)


def test_what_an_encoder_reads_is_framed_as_its_vocabulary_does(tmp_path):
    """BART's own vocabulary has a token that begins a text; T5's and ours have only the one that ends it."""
    loaded = seedbed.load(make(tmp_path, "bart"))
    assert loaded._framed([9, 8]) == [9, 8, 3]
    foreign = loaded.model.config.updated(special_ids={"bos": 1, "eos": 2, "decoder_start": 2})
    theirs = LoadedModel(build_model(foreign, seed=0), loaded.tokenizer, loaded.path)
    assert theirs._framed([9, 8]) == [1, 9, 8, 2]


def test_wrong_uses_are_refused_with_what_to_do(tmp_path):
    masked, causal = seedbed.load(make(tmp_path, "bert")), seedbed.load(make(tmp_path, "gpt2"))
    with pytest.raises(DataError, match=r"no \[MASK\]"):
        masked.fill_mask("the cat")
    with pytest.raises(DataError, match="64 positions"):
        masked.fill_mask("[MASK] " + "a " * 100)
    with pytest.raises(IncompatibleError) as refused:
        masked.generate("the")
    assert refused.value.hint == "seedbed fill-mask"
    with pytest.raises(IncompatibleError) as refused:
        causal.fill_mask("the [MASK]")
    assert refused.value.hint == "seedbed generate"
    with pytest.raises(DataError, match="64 positions"):
        causal.generate("a " * 100)


def test_folders_without_a_model_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        seedbed.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no model"):
        seedbed.load(tmp_path)
    (tmp_path / "pretrain").mkdir()
    with pytest.raises(DataError, match="not finished training"):
        seedbed.load(tmp_path)


def test_a_damaged_artifact_is_not_loaded(tmp_path):
    from seedbed.artifact import publish

    source = make(tmp_path, "bert")
    with publish(tmp_path / "model", stage="model", version=1) as draft:
        for file in source.iterdir():
            (draft.path / file.name).write_bytes(file.read_bytes())
    assert seedbed.load(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        seedbed.load(tmp_path / "model")
