"""Run the stages before training, one after the other, each skipped when it is up to date."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.artifact import Artifact
from seedbed.commands.console import Console, quantity
from seedbed.commands.start import start_tokenizer
from seedbed.corpus.pipeline import build_corpus, iter_documents
from seedbed.data.store import TokenStore, build_store
from seedbed.errors import IncompatibleError
from seedbed.recipe import Recipe
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.train import build_tokenizer

__all__ = ["Prepared", "corpus_stage", "prepare", "tokenizer_stage", "tokens_stage"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Hold what training stands on."""

    run: Path
    corpus: Artifact
    tokenizer_artifact: Artifact
    tokens: Artifact
    tokenizer: Tokenizer
    store: TokenStore


def corpus_stage(
    recipe: Recipe, console: Console, *, strict: bool = False, replace: bool = False
) -> Artifact:
    """Clean the corpus and say what came of it."""
    console.heading("corpus")
    with console.bars():
        artifact = build_corpus(
            recipe.corpus, recipe.run_folder(), strict=strict, replace=replace, progress=console.progress
        )
    counts = artifact.counts
    rows = [
        [split, f"{numbers['documents']:,}", quantity(numbers["bytes"], "bytes")]
        for split, numbers in counts["splits"].items()
        if numbers["documents"]
    ]
    console.table(rows, header=["split", "documents", "text"])
    rejected = counts["faults"]
    if rejected:
        console.note(
            f"{rejected:,} lines or files rejected, listed in {recipe.run_folder() / 'corpus' / 'rejects.jsonl'}"
        )
    return artifact


def tokenizer_stage(recipe: Recipe, corpus: Artifact, console: Console, *, replace: bool = False) -> Artifact:
    """Learn or load the tokenizer."""
    console.heading("tokenizer")
    section = recipe.tokenizer
    if (path := start_tokenizer(recipe)) is not None:
        section = section.updated(path=path)
    with console.bars():
        artifact = build_tokenizer(
            section,
            lambda split: (document.text for document in iter_documents(corpus, split)),
            extension=recipe.start.extend_vocabulary,
            corpus_digest=corpus.digest,
            run=recipe.run_folder(),
            replace=replace,
            progress=console.progress,
        )
    report = json.loads(artifact.file("report.json").read_text(encoding="utf-8"))
    if "extension" in report:
        _describe_extension(report, console)
    return artifact


def _describe_extension(report: dict[str, Any], console: Console) -> None:
    """Say which words joined the vocabulary, and what that changes on the validation split."""
    made = report["extension"]
    rows = [
        [row["word"], f"{row['count']:,}", str(len(row["before"])), f"{row['saved']:,}"]
        for row in made["words"][:10]
    ]
    console.table(rows, header=["word", "count", "pieces before", "tokens saved"])
    before, after = made["validation_before"]["all"], report["validation"]["all"]
    console.note(
        f"{made['added']:,} tokens added ({made['vocab_size_before']:,} to {report['vocab_size']:,}); on the validation split"
        f" {before['tokens_per_word']:.3f} to {after['tokens_per_word']:.3f} tokens a word,"
        f" {before['bytes_per_token']:.2f} to {after['bytes_per_token']:.2f} bytes a token"
    )


def tokens_stage(
    recipe: Recipe, corpus: Artifact, tokenizer: Artifact, console: Console, *, replace: bool = False
) -> Artifact:
    """Write the token store and say how its texts were encoded."""
    console.heading("tokens")
    with console.bars():
        artifact = build_store(
            recipe.tokens, corpus, tokenizer, recipe.run_folder(), replace=replace, progress=console.progress
        )
    encoder = artifact.counts.get("encoder")  # not in stores of earlier versions
    if encoder and encoder["name"] == "lookup":
        compared = encoder["compared_characters"]
        console.note(
            f"words were looked up; on {compared:,} characters compared, the tokenizer gave the same tokens"
        )
    elif encoder:
        console.note(f"words were not looked up, the tokenizer encoded all: {encoder['reason']}")
    return artifact


def prepare(recipe: Recipe, console: Console, *, strict: bool = False, replace: bool = False) -> Prepared:
    """Run the three stages and open what they made.

    Raises:
        IncompatibleError: the store was made with another tokenizer than the run's.
    """
    run = recipe.run_folder()
    corpus = corpus_stage(recipe, console, strict=strict, replace=replace)
    tokenizer_artifact = tokenizer_stage(recipe, corpus, console, replace=replace)
    tokens = tokens_stage(recipe, corpus, tokenizer_artifact, console, replace=replace)
    tokenizer = Tokenizer.load(tokenizer_artifact.path)
    store = TokenStore.open(tokens)
    if store.tokenizer_digest != tokenizer.digest:
        raise IncompatibleError(
            f"{tokens.path} holds tokens of tokenizer {store.tokenizer_digest[:12]}, the run has {tokenizer.digest[:12]}.",
            hint="rerun the tokens stage with --replace",
        )
    return Prepared(run, corpus, tokenizer_artifact, tokens, tokenizer, store)


def stage_result(name: str, artifact: Artifact, run: Path) -> dict[str, Any]:
    """Return what a stage command prints with --json."""
    return {"stage": name, "path": str(run / name), "digest": artifact.digest, "counts": artifact.counts}
