"""Build the stage `tokenizer`: choose a sample of the training text, learn or load a vocabulary, report on it.

How each algorithm learns lives in `learn.py`, what is reported in `report.py`.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import Field

from seedbed.artifact import Artifact, current_stage, publish_stage, write_json
from seedbed.config import Config
from seedbed.errors import DataError
from seedbed.progress import Progress, silent
from seedbed.tokenizer.extend import ExtendVocabularyConfig, extend, propose, table
from seedbed.tokenizer.learn import ALGORITHMS
from seedbed.tokenizer.report import measure
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["STAGE", "VERSION", "Sample", "TokenizerConfig", "build_tokenizer", "cut_line", "sample_lines"]

STAGE = "tokenizer"
VERSION = 1

_log = logging.getLogger(__name__)


class TokenizerConfig(Config):
    """How text becomes tokens: learn a vocabulary from the training split, or load one."""

    path: str | None = Field(
        None,
        description="Load this tokenizer.json, vocab.txt, run folder or Hugging Face folder instead of learning. Null: learn.",
    )
    algorithm: Literal["wordpiece", "bpe", "unigram"] = Field(
        "wordpiece",
        description="wordpiece: BERT's, each Chinese character a token. bpe: byte-level as GPT-2, nothing is unknown and"
        " text comes back byte for byte. unigram: SentencePiece's, as T5 and XLNet.",
    )
    vocab_size: int = Field(
        8192, ge=64, le=1_000_000, description="Tokens in the vocabulary, special and reserved ones included."
    )
    lowercase: bool | None = Field(
        None,
        description="Fold case (and strip accents, wordpiece). Null: true for wordpiece, as bert-base-uncased.",
    )
    num_reserved: int = Field(
        32, ge=0, le=1000, description="Unused special tokens kept for later: sentinels, task markers."
    )
    min_frequency: int = Field(
        2, ge=1, description="A character or a merge must occur this often in the sample."
    )
    character_coverage: float = Field(
        0.9995,
        gt=0.0,
        le=1.0,
        description="Share of the text's characters that are tokens; the rest is unknown (wordpiece, unigram). 0.9995 is"
        " SentencePiece's advice for Chinese. At least vocab_size/16 characters are kept.",
    )
    sample_mib: float = Field(
        16.0,
        gt=0.0,
        description="Text to learn from, MiB: lines with the smallest hashes. Memory is about 15 times this, for unigram 30.",
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """Lines to learn from, and what they were chosen out of."""

    lines: list[str]
    num_bytes: int
    total_bytes: int
    total_lines: int


def sample_lines(texts: Iterable[str], *, budget_bytes: int) -> Sample:
    """Keep the lines with the smallest hashes that fit a budget.

    One pass; memory is bounded by the budget. The choice depends on the set of lines alone, not on their order, and more
    text only ever pushes lines out at the far end. Lines come back in the order of their hashes.
    """
    heap: list[tuple[int, str, int]] = []
    ceiling = 1 << 64
    held = total_bytes = total_lines = 0
    for text in texts:
        for line in text.split("\n"):
            for piece in cut_line(line):
                data = piece.encode("utf-8")
                total_bytes += len(data)
                total_lines += 1
                key = xxhash.xxh3_64_intdigest(data)
                if key >= ceiling:
                    continue
                heapq.heappush(heap, (-key, piece, len(data)))
                held += len(data)
                while held > budget_bytes and len(heap) > 1:
                    largest, _, size = heapq.heappop(heap)
                    held -= size
                    ceiling = -largest
    lines = [piece for _, piece, _ in sorted(heap, key=lambda item: (-item[0], item[1]))]
    return Sample(lines, held, total_bytes, total_lines)


def cut_line(line: str, *, limit: int = 1 << 16) -> Iterator[str]:
    """Cut a line into pieces of at most `limit` characters, before white space where there is some.

    The pieces joined are the line; an empty line has none. Keeps the memory of a tokenizer bounded on any input.
    """
    while len(line) > limit:
        # Only the last stretch is searched, so that text without blanks is not searched over and over.
        at = next((i for i in range(limit, limit - 1024, -1) if i > 0 and line[i].isspace()), limit)
        yield line[:at]
        line = line[at:]
    if line:
        yield line


def build_tokenizer(
    config: TokenizerConfig,
    texts: Callable[[str], Iterable[str]],
    *,
    corpus_digest: str,
    run: Path,
    extension: ExtendVocabularyConfig | None = None,
    replace: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Build the stage `tokenizer`, or return it when it is up to date.

    Args:
        config: the `tokenizer` section.
        texts: gives the document texts of a split ("train", "validation"), anew at each call.
        corpus_digest: content digest of the corpus; part of the key.
        run: the run folder.
        extension: with `config.path`: words of the training text to add.
        replace: build anew where a stage made differently stands.
        progress: told the bytes read.

    Returns:
        An artifact with `tokenizer.json`, `tokenizer_config.json`, `report.json` and, for WordPiece, `vocab.txt`.

    Raises:
        ConfigError: the vocabulary is smaller than its alphabet.
        DataError: no text to learn from, or `config.path` is not a tokenizer.
        IncompatibleError: the run holds a tokenizer made differently and `replace` is false, or the loaded one cannot be
            extended.
    """
    loaded = Tokenizer.load(config.path, lowercase=config.lowercase) if config.path is not None else None
    inputs = {"corpus": corpus_digest}
    if loaded is not None:
        inputs["tokenizer"] = loaded.digest
    plain = config.model_dump(mode="json")
    if extension is not None and extension.num_tokens:
        plain["extend_vocabulary"] = extension.model_dump(mode="json")
    done = current_stage(run, STAGE, version=VERSION, config=plain, inputs=inputs, replace=replace)
    if done is not None:
        return done
    with publish_stage(run, STAGE, version=VERSION, config=plain, inputs=inputs) as draft:
        made: dict[str, Any]
        if loaded is None:
            tokenizer, made = _learn(config, texts, progress)
        else:
            tokenizer, made = loaded, {"loaded": str(config.path), "notes": list(loaded.notes)}
            if extension is not None and extension.num_tokens:
                tokenizer, made["extension"] = _extended(loaded, extension, texts, progress)
        for note in made["notes"]:
            _log.warning("tokenizer: %s", note)
        tokenizer.save(draft.path)
        report = {
            "algorithm": tokenizer.algorithm,
            "vocab_size": tokenizer.vocab_size,
            **made,
            "validation": measure(tokenizer, texts("validation")),
        }
        write_json(draft.path / "report.json", report)
        draft.counts |= {
            "vocab_size": tokenizer.vocab_size,
            "digest": tokenizer.digest,
            "separator_id": tokenizer.separator_id,
            "warnings": len(made["notes"]),
        }
    artifact = current_stage(run, STAGE, version=VERSION, config=plain, inputs=inputs)
    assert artifact is not None
    return artifact


def _extended(
    loaded: Tokenizer,
    config: ExtendVocabularyConfig,
    texts: Callable[[str], Iterable[str]],
    progress: Progress,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Add words of the training split; return the tokenizer and what the report says of them."""
    sample = sample_lines(_told(texts, progress), budget_bytes=int(config.sample_mib * 2**20))
    proposals = propose(loaded, sample.lines, num_tokens=config.num_tokens, min_count=config.min_count)
    tokenizer = extend(loaded, proposals, num_tokens=config.num_tokens)
    return tokenizer, {
        "vocab_size_before": loaded.vocab_size,
        "added": tokenizer.vocab_size - loaded.vocab_size,
        "sample_bytes": sample.num_bytes,
        "validation_before": measure(loaded, texts("validation")),
        "words": table(tokenizer, loaded, proposals),
    }


def _told(texts: Callable[[str], Iterable[str]], progress: Progress) -> Iterator[str]:
    """Yield the training texts and tell how many bytes were read."""
    done = 0
    for text in texts("train"):
        yield text
        done += len(text.encode("utf-8"))
        progress("reading", done=done, total=None, unit="bytes")


def _learn(
    config: TokenizerConfig, texts: Callable[[str], Iterable[str]], progress: Progress
) -> tuple[Tokenizer, dict[str, Any]]:
    """Learn from a sample of the training split; return the tokenizer and what the report says of it."""
    sample = sample_lines(_told(texts, progress), budget_bytes=int(config.sample_mib * 2**20))
    if not sample.lines:
        raise DataError(
            "the training split holds no text to learn a vocabulary from.", hint="check the corpus stage"
        )
    lowercase = config.lowercase if config.lowercase is not None else config.algorithm == "wordpiece"
    backend = ALGORITHMS[config.algorithm](
        sample.lines,
        vocab_size=config.vocab_size,
        special=special_tokens(config.num_reserved),
        lowercase=lowercase,
        min_frequency=config.min_frequency,
        coverage=config.character_coverage,
    )
    tokenizer = Tokenizer(backend)
    notes = []
    if tokenizer.vocab_size < config.vocab_size:
        notes.append(
            f"the text gives {tokenizer.vocab_size} tokens, {config.vocab_size - tokenizer.vocab_size} fewer than asked for"
        )
    return tokenizer, {
        "lowercase": lowercase,
        "sample_bytes": sample.num_bytes,
        "sample_lines": len(sample.lines),
        "train_bytes": sample.total_bytes,
        "notes": notes,
    }
