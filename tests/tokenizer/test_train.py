from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed.errors import DataError, IncompatibleError
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.train import TokenizerConfig, build_tokenizer, cut_line, sample_lines


def test_sample_is_the_lines_with_the_smallest_hashes_in_any_order(lines: list[str]) -> None:
    everything = sample_lines(["\n".join(lines)], budget_bytes=1 << 30)
    assert sorted(everything.lines) == sorted(lines)
    assert everything.num_bytes == everything.total_bytes == sum(len(line.encode()) for line in lines)
    budget = everything.total_bytes // 3
    some = sample_lines(["\n".join(lines)], budget_bytes=budget)
    assert some.lines == everything.lines[: len(some.lines)]  # lines come back by rising hash
    following = len(everything.lines[len(some.lines)].encode())
    assert budget - following < some.num_bytes <= budget
    assert (some.total_lines, some.total_bytes) == (len(lines), everything.total_bytes)
    shuffled = lines.copy()
    random.Random(1).shuffle(shuffled)
    assert sample_lines(shuffled, budget_bytes=budget).lines == some.lines


def test_sample_is_stable_when_text_is_added(lines: list[str]) -> None:
    before = set(sample_lines(lines, budget_bytes=5000).lines)
    after = set(sample_lines([*lines, *(f"new line {i}" for i in range(50))], budget_bytes=5000).lines)
    assert len(before - after) < 0.3 * len(before)
    assert any(line.startswith("new") for line in after)


@given(st.text(alphabet="ab \t天\u3000", max_size=200), st.integers(1, 30))
def test_pieces_of_a_line_are_the_line(line: str, limit: int) -> None:
    pieces = list(cut_line(line, limit=limit))
    assert "".join(pieces) == line
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_long_lines_are_cut_before_white_space() -> None:
    assert list(cut_line("aaa bbb ccc", limit=8)) == ["aaa bbb", " ccc"]
    assert list(cut_line("abcdefghij", limit=4)) == ["abcd", "efgh", "ij"]


def build(run: Path, lines: list[str], **config: object):
    texts = {"train": lines[:250], "validation": lines[250:]}
    return build_tokenizer(
        TokenizerConfig.model_validate({"vocab_size": 400, **config}),
        lambda split: iter(texts[split]),
        corpus_digest="c0ffee",
        run=run,
        replace=bool(config),
    )


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
def test_the_stage_is_the_same_twice_and_is_skipped(algorithm: str, lines: list[str], tmp_path: Path) -> None:
    first = build(tmp_path / "a", lines, algorithm=algorithm)
    second = build(tmp_path / "b", lines, algorithm=algorithm)
    assert first.digest == second.digest
    before = (tmp_path / "a" / "tokenizer").stat().st_mtime_ns
    assert build(tmp_path / "a", lines, algorithm=algorithm).digest == first.digest
    assert (tmp_path / "a" / "tokenizer").stat().st_mtime_ns == before
    tokenizer = Tokenizer.load(first.path)
    assert first.counts["digest"] == tokenizer.digest
    assert first.counts["vocab_size"] == tokenizer.vocab_size == 400
    report = json.loads(first.file("report.json").read_bytes())
    assert report["lowercase"] == (algorithm == "wordpiece")
    assert report["sample_bytes"] == report["train_bytes"] == sum(len(line.encode()) for line in lines[:250])
    assert report["validation"]["all"]["lines"] == 50


def test_another_config_is_refused_without_replace(lines: list[str], tmp_path: Path) -> None:
    build(tmp_path, lines)
    with pytest.raises(IncompatibleError, match="vocab_size 400 -> 300"):
        build_tokenizer(
            TokenizerConfig(vocab_size=300), lambda _: lines, corpus_digest="c0ffee", run=tmp_path
        )


def test_too_little_text_gives_fewer_tokens_and_says_so(
    lines: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        artifact = build(tmp_path, lines, vocab_size=5000)
    size = artifact.counts["vocab_size"]
    assert size < 5000
    assert artifact.counts["warnings"] == 1
    assert f"the text gives {size} tokens, {5000 - size} fewer than asked for" in caplog.text


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text to learn"):
        build(tmp_path, [])


def test_a_loaded_tokenizer_becomes_the_stage(lines: list[str], tmp_path: Path) -> None:
    file = tmp_path / "v.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nprince\n天\n")
    artifact = build(tmp_path / "run", lines, path=str(file))
    tokenizer = Tokenizer.load(artifact.path)
    assert tokenizer.digest == Tokenizer.load(file).digest
    report = json.loads(artifact.file("report.json").read_bytes())
    assert "taken as lowercase" in report["notes"][0]
    assert report["validation"]["all"]["unknown_rate"] > 0.5
    file.write_text(file.read_text().replace("prince", "princess"))
    assert build(tmp_path / "run", lines, path=str(file)).digest != artifact.digest
