from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from seedbed.errors import IncompatibleError
from seedbed.models import MODELS
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

Learn = Callable[..., Tokenizer]
CHARACTERS = "abzABZ .,!?'\"-—“”[]<|>#_中国人天，。！？「」𠀀🙂👩‍🚀éÉe\u0301ßİﬁΣ٣अ가ガ\u200b\u00a0\t\n５％"
TEXT = st.text(alphabet=st.one_of(st.sampled_from(CHARACTERS), st.characters(codec="utf-8")), max_size=50)
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(TEXT)
def test_no_text_gives_a_special_token(learned: Tokenizer, text: str) -> None:
    for probe in (text, f"{text}[MASK]{text}", f"[CLS] [unused1]{text}[PAD]"):
        assert not set(learned.encode(probe)) & (learned.special_ids - {learned.unk_id})


@SETTINGS
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_spans_are_the_ids_one_by_one_and_cover_characters(learned: Tokenizer, texts: list[str]) -> None:
    spans = learned.encode_spans(texts)
    assert learned.encode_batch(texts) == [learned.encode(text) for text in texts]
    assert spans.ids.tolist() == [i for text in texts for i in learned.encode(text)]
    assert spans.counts.tolist() == [len(learned.encode(text)) for text in texts]
    lengths = np.repeat([len(text) for text in texts], spans.counts)
    assert (spans.starts >= 0).all()
    assert (spans.starts <= spans.ends).all()
    assert (spans.ends <= lengths).all()
    assert {spans.ids.dtype, spans.starts.dtype, spans.pretokens.dtype} == {np.dtype("int32")}


def test_round_trips(lines: list[str], learn: Learn) -> None:
    bpe, unigram, wordpiece = learn("bpe"), learn("unigram"), learn("wordpiece")
    odd = ["a  b\t c\n\n天 下 🙂\u200b e\u0301 \U00020000 �", "", " ", "\n"]
    for line in [*lines, *odd]:
        assert bpe.decode(bpe.encode(line)) == line
    for line in lines:
        assert unigram.decode(unigram.encode(line)) == unicodedata.normalize("NFC", line)
        squeezed = "".join(line.lower().replace("é", "e").split())
        assert "".join(wordpiece.decode(wordpiece.encode(line)).split()) == squeezed
    assert wordpiece.decode(wordpiece.encode("天下，合久必分。")) == "天下，合久必分。"


def test_mask_is_read_only_when_allowed(learned: Tokenizer) -> None:
    for text in ("the [MASK] river", "天下[MASK]势"):
        ids = learned.encode(text, allow_special=True)
        assert ids.count(learned.mask_id) == 1
        at = ids.index(learned.mask_id)
        left, right = text.split("[MASK]")
        # The mask stands for a word with the blank before it, so what surrounds it is encoded as if the word were there.
        assert ids[:at] == learned.encode(left.rstrip())
        word = "prince" if "river" in text else "必"
        assert ids[at + 1 :] == learned.encode(left + word + right)[-len(ids[at + 1 :]) :]
        assert learned.mask_id not in learned.encode(text)


def test_ids_of_parts(learned: Tokenizer) -> None:
    assert (learned.pad_id, learned.unk_id, learned.cls_id, learned.sep_id, learned.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert learned.separator_id == learned.bos_id == learned.eos_id == 3
    assert learned.special_ids == frozenset(range(9))
    assert learned.token(4) == "[MASK]"
    assert learned.token_id("[unused3]") == 8
    assert learned.token(10**6) == ""
    assert learned.token_id("no such token") is None


def test_newlines_survive_in_byte_level_vocabularies_only(learned: Tokenizer) -> None:
    assert learned.keeps_newlines == (learned.algorithm == "bpe")


def test_a_vocabulary_without_a_separator_is_refused_where_one_is_needed() -> None:
    tokenizer = Tokenizer(Backend(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    assert tokenizer.mask_id is None
    with pytest.raises(IncompatibleError, match="separate documents"):
        _ = tokenizer.separator_id


def test_digest_is_about_ids_alone(learned: Tokenizer, tmp_path: Path) -> None:
    for kind in ("encoder", "decoder", "encoder_decoder"):
        learned.save(tmp_path / kind, kind=kind)
        assert Tokenizer.load(tmp_path / kind).digest == learned.digest
    changed = Backend.from_str(learned._backend.to_str())
    changed.add_special_tokens([AddedToken("<extra>")])
    assert Tokenizer(changed).digest != learned.digest


# ------------------------------------------------------------------------------------- transformers opens it

TEXTS = [
    "The prince, don't you [remember]? café 3.5%",
    "话说天下大势，分久必合。",
    "mixed 北京 text 🙂 \U00020000 zq",
    " spaces  twice ",
    "",
]


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("family", [None, *MODELS])
def test_auto_tokenizer_gives_the_same_ids(
    learned: Tokenizer, tmp_path: Path, lines: list[str], kind: str, family: str | None
) -> None:
    """Also beside a model's config.json, where transformers may prefer the class of the model's family."""
    from transformers import AutoTokenizer

    if family is not None:
        kind_of_model = MODELS[family].model_type or family
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind_of_model}"}}')
    learned.save(tmp_path, kind=kind, max_length=77, token_types=kind == "encoder")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, *lines[:20], "the [MASK] river", "天下[MASK]势"]:
        ours = learned.encode(text, allow_special=True)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours
        assert theirs.decode(ours, skip_special_tokens=True) == learned.decode(ours)
    assert len(theirs) == learned.vocab_size
    assert theirs.model_max_length == 77
    assert [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert theirs.mask_token_id == learned.mask_id
    a, b = learned.encode("the river"), learned.encode("天下")
    if kind == "encoder":
        pair = theirs("the river", "天下")
        assert pair["input_ids"] == [2, *a, 3, *b, 3]
        assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    elif kind == "encoder_decoder":
        assert theirs("the river")["input_ids"] == [*a, 3]
        assert theirs("the river", "天下")["input_ids"] == [*a, 3, *b, 3]
        assert theirs.eos_token_id == learned.separator_id
    else:
        assert theirs("the river")["input_ids"] == [3, *a]
        assert theirs.eos_token_id == learned.separator_id


def test_wordpiece_is_saved_with_a_vocab_txt_that_loads_alike(
    lines: list[str], learn: Learn, tmp_path: Path
) -> None:
    for lowercase in (True, False):
        tokenizer = learn("wordpiece", lowercase=lowercase)
        folder = tmp_path / str(lowercase)
        tokenizer.save(folder)
        alone = tmp_path / f"{lowercase}.txt"
        alone.write_bytes((folder / "vocab.txt").read_bytes())
        again = Tokenizer.load(alone, lowercase=lowercase)
        assert [again.encode(line) for line in lines] == [tokenizer.encode(line) for line in lines]
    assert special_tokens(2)[-1] == "[unused1]"
