from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rjieba
import sentencepiece

from seedbed.errors import ConfigError
from seedbed.tokenizer.chinese import HAN_RUN
from seedbed.tokenizer.learn import ALGORITHMS, alphabet
from seedbed.tokenizer.special import special_tokens

DIGEST = """
import hashlib, sys
sys.path.insert(0, sys.argv[2])
from conftest import learn
print(hashlib.sha256(learn(sys.argv[1])._backend.to_str().encode()).hexdigest())
"""


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_same_text_same_bits_in_other_processes_with_other_threads(algorithm: str) -> None:
    """The trainer of tokenizers numbers `##` characters in the order of a hash map: without our first pass this fails."""
    digests = set()
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, algorithm, str(Path(__file__).parent)],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_wordpiece_is_the_same_in_every_repeat(lines: list[str]) -> None:
    digests = {
        hashlib.sha256(_learn("wordpiece", lines, 500).to_str().encode()).hexdigest() for _ in range(6)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_size_is_what_was_asked_and_special_tokens_come_first(algorithm: str, lines: list[str]) -> None:
    backend = _learn(algorithm, lines, 400)
    vocab = backend.get_vocab(with_added_tokens=True)
    assert len(vocab) == 400
    assert sorted(vocab.values()) == list(range(400))
    assert [backend.id_to_token(i) for i in range(7)] == special_tokens(2)


def test_wordpiece_fills_empty_places_with_rare_characters() -> None:
    """Chinese has few merges, so places are left over; rarer characters than the coverage asks for take them."""
    lines = ["天" * 4000 + "地玄黄宇宙洪荒" * 2]
    backend = ALGORITHMS["wordpiece"](
        lines, vocab_size=64, special=special_tokens(0), lowercase=True, min_frequency=2, coverage=0.5
    )
    assert all(backend.token_to_id(character) is not None for character in "天地玄黄宇宙洪荒")


def test_han_characters_stand_alone_in_wordpiece_and_runs_are_kept_apart_in_bpe(lines: list[str]) -> None:
    assert _learn("wordpiece", lines, 400).encode("abc天下大势a", add_special_tokens=False).tokens[-5:] == [
        "天",
        "下",
        "大",
        "势",
        "a",
    ]
    bpe = _learn("bpe", lines, 600)
    pieces = [piece for piece, _ in bpe.pre_tokenizer.pre_tokenize_str("the天下，ok")]
    assert len(pieces) == 4


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_chinese_tokens_are_words_not_clauses_that_text_repeats(algorithm: str) -> None:
    clause = "环形山在月图上以字母标注在它的中心点旁边"
    backend = _learn(algorithm, [clause, f"{clause}。"] * 50, 400 if algorithm == "bpe" else 60)
    words = set(rjieba.cut(clause))
    tokens = [backend.decode([i]).strip() for i in range(7, backend.get_vocab_size())]
    learned = {token for token in tokens if len(token) > 1 and HAN_RUN.fullmatch(token)}
    assert learned & words
    assert all(any(token in word for word in words) for token in learned)
    assert "\x1f" not in clause + "".join(tokens[256:])


def test_unigram_gives_the_ids_of_sentencepiece(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    protos: list[bytes] = []
    original = sentencepiece.SentencePieceProcessor

    def keep(model_proto: bytes) -> sentencepiece.SentencePieceProcessor:
        protos.append(model_proto)
        return original(model_proto=model_proto)

    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", keep)
    backend = _learn("unigram", lines, 400)
    reference = original(model_proto=protos[0])
    unseen = [f"{a} [x] {b} 🙂🙂 zq" for a, b in itertools.pairwise(lines)]
    backend.encode_special_tokens = True
    for line in [*lines, *unseen]:
        ours = backend.encode(line, add_special_tokens=False).ids
        assert ours == reference.encode(backend.normalizer.normalize_str(line)), line


def test_alphabet_is_the_frequent_characters_with_ties_by_code_point() -> None:
    kept, left = alphabet(["aaaa bbb cc dd e"], size=32, lowercase=False, min_frequency=2, coverage=0.75)
    assert kept == ["a", "b", "c"]  # 4 + 3 of 12 do not reach 0.75, with "c" they do
    assert left == ["d"]
    kept, _ = alphabet(["Éa"], size=160, lowercase=True, min_frequency=1, coverage=1.0)
    assert kept == ["a", "e"]  # folded as BERT folds: case and accent go


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_too_small_a_vocabulary_says_how_much_is_needed(algorithm: str, lines: list[str]) -> None:
    with pytest.raises(ConfigError, match="alone take") as caught:
        _learn(algorithm, lines, 20)
    assert "tokenizer.vocab_size to 1024" in str(caught.value)


def _learn(algorithm: str, lines: list[str], size: int):
    return ALGORITHMS[algorithm](
        lines,
        vocab_size=size,
        special=special_tokens(2),
        lowercase=algorithm == "wordpiece",
        min_frequency=1,
        coverage=0.9995,
    )
