from __future__ import annotations

from pathlib import Path

from seedbed.tokenizer.report import measure
from seedbed.tokenizer.tokenizer import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river", "##s", "天", "下", "大", ",", "。"]


def test_figures_of_a_text_counted_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(VOCAB))
    report = measure(Tokenizer.load(file), ["the rivers, the zoo\n天下大势。the", "\n  \n"])
    # the river ##s , the [UNK]: 6 tokens, 4 words, 19 bytes
    assert report["other"] == {
        "lines": 1,
        "bytes": 19,
        "tokens": 6,
        "tokens_per_word": 1.5,
        "bytes_per_token": round(19 / 6, 4),
        "characters_per_token": round(19 / 6, 4),
        "unknown_rate": round(1 / 6, 6),
        "single_character_rate": round(2 / 6, 4),  # "##s" and ","
    }
    # 天 下 大 [UNK] 。 the: 6 tokens; rjieba: 天下 大势, and "the": 3 words; 18 bytes, 8 characters
    assert report["chinese"]["tokens"] == 6
    assert report["chinese"]["tokens_per_word"] == 2.0
    assert report["chinese"]["bytes"] == 18
    assert report["all"]["tokens"] == 12
    assert report["all"]["tokens_per_word"] == round(12 / 7, 4)
    assert report["longest_tokens"][:2] == ["river", "the"]


def test_only_the_first_bytes_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(VOCAB))
    report = measure(Tokenizer.load(file), (f"the river {i}" for i in range(10_000)), limit_bytes=1000)
    assert 1000 <= report["all"]["bytes"] < 1100
