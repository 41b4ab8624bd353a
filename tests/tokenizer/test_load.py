from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from seedbed.artifact import publish
from seedbed.errors import DataError, IntegrityError
from seedbed.tokenizer.load import read_tokenizer
from seedbed.tokenizer.tokenizer import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##s", "天", "cafe", "caf", "##é", "é", ","]


def write_vocab(path: Path, tokens: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(token + end for token in tokens).encode())
    return path


def test_vocab_txt_case_is_read_then_given_then_guessed(tmp_path: Path) -> None:
    file = write_vocab(tmp_path / "vocab.txt", VOCAB)
    guessed = Tokenizer.load(file)
    assert "lowercase, because no token has a capital" in guessed.notes[0]
    assert [guessed.token(i) for i in guessed.encode("Hellos, CAFÉ天")] == ["hello", "##s", ",", "cafe", "天"]
    assert Tokenizer.load(file, lowercase=False).notes == ()
    assert Tokenizer.load(file, lowercase=False).encode("café") == [9, 10]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(file).encode("café") == [9, 10]
    assert Tokenizer.load(tmp_path).notes == ()
    cased = write_vocab(tmp_path / "cased.txt", [*VOCAB, "Hello"])
    (tmp_path / "tokenizer_config.json").unlink()
    assert "cased, because it has the token 'Hello'" in Tokenizer.load(cased).notes[0]


def test_vocab_txt_line_numbers_are_ids_also_with_windows_line_ends(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        tokenizer = Tokenizer.load(write_vocab(tmp_path / "v.txt", VOCAB, end))
        assert tokenizer.vocab_size == len(VOCAB)
        assert [tokenizer.token_id(token) for token in VOCAB] == list(range(len(VOCAB)))
    assert tokenizer.separator_id == 3


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 7: 'hello' stands there a second time, first at line 6"):
        Tokenizer.load(write_vocab(tmp_path / "twice.txt", [*VOCAB[:6], "hello"]))
    with pytest.raises(DataError, match=r"has no \[UNK\]"):
        Tokenizer.load(write_vocab(tmp_path / "gpt2.txt", ["a", "b"]))
    (tmp_path / "latin.txt").write_bytes(b"[UNK]\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 9\)"):
        Tokenizer.load(tmp_path / "latin.txt")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b'{"version": "caf\xe9"}')
    with pytest.raises(DataError, match=r"not a tokenizer\.json.*utf-8"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        Tokenizer.load(tmp_path / "nowhere")


def test_only_the_file_is_blamed_for_what_is_wrong_with_the_file(tmp_path: Path, monkeypatch) -> None:
    def read_text(self: Path, encoding: str | None = None) -> str:
        raise PermissionError(13, "denied", str(self))

    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(PermissionError):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        Tokenizer.load(tmp_path / "empty")
    (tmp_path / "empty" / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"merges\.txt"):
        Tokenizer.load(tmp_path / "empty")
    (tmp_path / "empty" / "merges.txt").write_text("a b\n")
    with pytest.raises(DataError, match="not a byte-level BPE"):
        Tokenizer.load(tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.load(tmp_path / "empty")


def test_vocab_and_merges_give_the_ids_of_the_whole_file(
    learn: object, tmp_path: Path, lines: list[str]
) -> None:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned = learn("bpe")  # type: ignore[operator]
    parts = json.loads(learned._backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parts["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "[unused3]"}}')
    loaded = Tokenizer.load(tmp_path)
    english = [line for line in lines if line.isascii()]
    assert english
    assert [loaded.encode(line) for line in english] == [learned.encode(line) for line in english]
    assert loaded.separator_id == loaded.token_id("[unused3]")
    assert loaded.token_id("[unused3]") in loaded.special_ids
    assert loaded.encode("a [unused3]", allow_special=True)[-1] == loaded.separator_id


def test_padding_and_truncation_of_a_file_do_not_cut_text(learn: object, tmp_path: Path) -> None:
    backend = Backend.from_str(learn("bpe")._backend.to_str())  # type: ignore[operator]
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "the little prince looked at the river"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.pad_id not in tokenizer.encode("a")


def test_a_run_folder_stands_for_its_tokenizer(learn: object, tmp_path: Path) -> None:
    tokenizer = learn("wordpiece")  # type: ignore[operator]
    with publish(tmp_path / "run" / "tokenizer", stage="tokenizer", version=1) as draft:
        tokenizer.save(draft.path)
    assert Tokenizer.load(tmp_path / "run").digest == Tokenizer.load(tmp_path / "run" / "tokenizer").digest
    file = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"river", b"rivet"))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json was changed"):
        Tokenizer.load(tmp_path / "run")


def test_a_changed_artifact_is_refused(learn: object, tmp_path: Path) -> None:
    with publish(tmp_path / "t", stage="tokenizer", version=1) as draft:
        learn("wordpiece").save(draft.path)  # type: ignore[operator]
    Tokenizer.load(tmp_path / "t")
    file = tmp_path / "t" / "tokenizer.json"
    data = file.read_bytes()
    file.write_bytes(data.replace(b"river", b"rivet"))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json was changed"):
        Tokenizer.load(tmp_path / "t")


# --------------------------------------------------------------------------------------- public vocabularies


@pytest.fixture(scope="module")
def real_lines(request: pytest.FixtureRequest) -> list[str]:
    data = Path(request.config.getoption("--data"))
    lines: list[str] = []
    for name in ("wiki-en", "wiki-zh"):
        with gzip.open(data / name / f"{name}.txt.gz", "rt", encoding="utf-8") as file:
            lines += [line.strip() for _, line in zip(range(1500), file, strict=False) if line.strip()]
    return lines


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "lowercase"),
    [("google_uncased_en", True), ("google_cased_en", False), ("google_zh", True), ("google_zh", False)],
)
def test_bert_vocabularies_give_the_ids_of_transformers(
    name: str, lowercase: bool, data_dir: Path, real_lines: list[str], tmp_path: Path
) -> None:
    from transformers import BertTokenizer

    file = data_dir / "vocabs" / f"{name}_vocab.txt"
    ours = Tokenizer.load(file, lowercase=lowercase)
    shutil.copy(file, tmp_path / "vocab.txt")
    theirs = BertTokenizer.from_pretrained(tmp_path, do_lower_case=lowercase)
    expected = theirs(real_lines, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch(real_lines) == expected
    assert ours.vocab_size == len(theirs)
    assert (ours.cls_id, ours.sep_id, ours.mask_id, ours.pad_id) == (
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.mask_token_id,
        theirs.pad_token_id,
    )


@pytest.mark.data
def test_guesses_for_public_vocabularies(data_dir: Path) -> None:
    for name, is_lower in (("google_uncased_en", True), ("google_cased_en", False), ("google_zh", True)):
        notes = read_tokenizer(data_dir / "vocabs" / f"{name}_vocab.txt").notes
        assert ("as lowercase" if is_lower else "as cased") in notes[0]


@pytest.mark.data
def test_gpt2_gives_the_ids_of_transformers(data_dir: Path, real_lines: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / "tokenizer.json"
    file.write_bytes(gzip.decompress((data_dir / "vocabs" / "gpt2-tokenizer.json.gz").read_bytes()))
    ours = Tokenizer.load(file)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode_batch(real_lines) == theirs(real_lines)["input_ids"]
    assert ours.separator_id == ours.bos_id == 50256
    assert ours.vocab_size == 50257
    saved = tmp_path / "saved"
    ours.save(saved, kind="decoder")
    again = AutoTokenizer.from_pretrained(saved)
    assert again(real_lines[:50])["input_ids"] == ours.encode_batch(
        real_lines[:50]
    )  # keeps GPT-2's own template
