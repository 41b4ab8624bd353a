"""Score a model: on a run's own stored validation targets, or on text files of your own.

Prints loss, perplexity and accuracy at the targets, bits per byte (causal) or pseudo-log-likelihood per byte (masked),
beside what the corpus alone predicts at the same targets. docs/evaluation.md says what each figure counts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.commands.console import Console, quantity
from seedbed.commands.judging import add_judging_arguments, head_and_trunk, open_model, text_objective

if TYPE_CHECKING:
    import torch

    from seedbed.api import LoadedModel
    from seedbed.objectives import Vocabulary

EXAMPLES = """examples:
  seedbed evaluate runs/demo-en                          the run's own validation split
  seedbed evaluate runs/demo-en --text my/*.txt --json   files of your own
  seedbed evaluate path/to/bert-folder --text my.jsonl   any Hugging Face folder of a known family
  seedbed evaluate runs/order --pairs                    a model of sentence pairs, on both of their tasks"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a run folder, its model folder, or a Hugging Face folder")
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="files, folders or globs to score instead of the validation split",
    )
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field of .jsonl, .csv and .parquet files (default text)",
    )
    parser.add_argument(
        "--documents",
        choices=("blank_line", "file", "line"),
        default="blank_line",
        help="what separates documents in .txt files",
    )
    parser.add_argument(
        "--row-length", type=int, metavar="T", help="tokens of a row (default: as trained, else 128)"
    )
    parser.add_argument(
        "--max-mib",
        type=float,
        default=4.0,
        metavar="M",
        help="text to score at most, chosen by hash; 0: all (default 4)",
    )
    parser.add_argument(
        "--pll-tokens",
        type=int,
        default=2000,
        metavar="N",
        help="tokens of the pseudo-log-likelihood's sample; 0: none (default 2000)",
    )
    parser.add_argument(
        "--pairs",
        nargs="?",
        type=int,
        const=1000,
        metavar="N",
        help="judge pairs of sentences instead, N of each kind: next sentence and sentence order (default 1000)",
    )
    add_judging_arguments(parser, precision="auto")


def run(options: argparse.Namespace) -> int:
    """Score the model."""
    from seedbed.artifact import open_verified, read_sealed_json
    from seedbed.corpus.pipeline import CorpusConfig, iter_documents, read_documents
    from seedbed.corpus.rejects import Reject
    from seedbed.data.store import TokenStore, check_tokenizer
    from seedbed.errors import ConfigError
    from seedbed.evaluation.text import evaluate_texts
    from seedbed.objectives import Vocabulary

    console = Console(as_json=options.json)
    model, device, dtype = open_model(options.model, options)
    run_folder = _run_folder(options.model)
    settings: dict[str, Any] = {"row_length": 128, "is_segmented": False}
    resolved: dict[str, Any] = {}
    if run_folder is not None:
        resolved = read_sealed_json(run_folder / "pretrain" / "resolved.json")["resolved"]
        settings = {key: resolved["data"][key] for key in settings}
    row_length = options.row_length or min(int(settings["row_length"]), model.model.config.max_length)
    if options.pairs is not None:
        return _judge_pairs(
            options, console, model, run_folder, row_length=row_length, device=device, compute_dtype=dtype
        )
    vocabulary = replace(
        Vocabulary.of(model.tokenizer),
        decoder_start_id=model.model.config.special_ids.get("decoder_start"),
    )
    config = text_objective(model)
    objective = config.build(
        vocabulary,
        row_length=row_length,
        is_segmented=bool(settings["is_segmented"]) and model.model.config.stack != "encoder_decoder",
    )
    objective.check(model.model.config)
    modules = head_and_trunk(model)

    train = None
    result: dict[str, Any] = {
        "model": str(model.path),
        "precision": str(dtype).removeprefix("torch."),
        "row_length": row_length,
        "objective": config.name,
    }
    rejects: list[Reject] = []
    if run_folder is not None:
        store = TokenStore.open(run_folder / "tokens")
        check_tokenizer(store, model.tokenizer)
        train = store.split("train")
    if options.text:
        corpus = CorpusConfig(text_field=options.text_field, documents=options.documents)
        documents = read_documents(options.text, corpus, rejects=rejects)
    elif run_folder is not None:
        result["stored_targets"] = _stored(
            run_folder, resolved, vocabulary, modules, device=device, dtype=dtype
        )
        documents = iter_documents(open_verified(run_folder / "corpus", stage="corpus"), "validation")
    else:
        raise ConfigError(
            f"{options.model} is no run folder, so it has no validation split of its own.",
            hint="name files with --text",
        )
    with console.bars():
        result |= evaluate_texts(
            objective,
            modules,
            (document.text for document in documents),
            model.tokenizer,
            train=train,
            max_bytes=int(options.max_mib * 2**20) or None,
            max_pll_tokens=options.pll_tokens if config.name == "masked_lm" else 0,
            device=device,
            compute_dtype=dtype,
            progress=console.progress,
        )
    result["rejected"] = [{"file": r.file, "line": r.line, "reason": r.reason} for r in rejects]
    console.result(result)
    if not options.json:
        _show(console, result)
    return 0


def _judge_pairs(
    options: argparse.Namespace,
    console: Console,
    model: LoadedModel,
    run_folder: Path | None,
    *,
    row_length: int,
    device: torch.device,
    compute_dtype: torch.dtype,
) -> int:
    """Print how well a model judges next sentences and the order of sentences."""
    from seedbed.corpus.pipeline import CorpusConfig, read_documents
    from seedbed.corpus.rejects import Reject
    from seedbed.data.memory import TextTokens
    from seedbed.data.store import TokenStore, check_tokenizer
    from seedbed.data.views import TokenStream
    from seedbed.errors import ConfigError
    from seedbed.evaluation.sentence_pairs import judge_pairs
    from seedbed.objectives import Vocabulary

    tokens: TokenStream
    rejects: list[Reject] = []
    if options.text:
        corpus = CorpusConfig(text_field=options.text_field, documents=options.documents)
        documents = read_documents(options.text, corpus, rejects=rejects)
        tokens = TextTokens([document.text for document in documents], model.tokenizer)
    elif run_folder is not None:
        store = TokenStore.open(run_folder / "tokens")
        check_tokenizer(store, model.tokenizer)
        tokens = store.split("validation")
    else:
        raise ConfigError(
            f"{options.model} is no run folder, so it has no validation split of its own.",
            hint="name files with --text",
        )
    found = judge_pairs(
        model.model,
        tokens,
        Vocabulary.of(model.tokenizer),
        row_length=row_length,
        max_rows=options.pairs,
        device=device,
        compute_dtype=compute_dtype,
    )
    rejected = [{"file": r.file, "line": r.line, "reason": r.reason} for r in rejects]
    console.result({"model": str(model.path), "row_length": row_length, "pairs": found, "rejected": rejected})
    if not options.json:
        console.heading("pairs of sentences (chance 50 %)")
        console.table(
            [
                [
                    kind.replace("_", " "),
                    f"{scores['accuracy']:.1%} +- {1.96 * scores['standard_error']:.1%}",
                    f"{scores['loss']:.3f}",
                    f"{scores['pairs']:,}",
                ]
                for kind, scores in found.items()
            ],
            header=["", "accuracy", "loss, nats", "pairs"],
        )
    return 0


def _stored(
    run: Path,
    resolved: dict[str, Any],
    vocabulary: Vocabulary,
    modules: dict[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Score the model at the run's own stored targets.

    Where an objective needs modules that a model folder does not hold (a generator, a pair head), the scores are those
    that the run ended with.
    """
    import json

    from seedbed.artifact import open_verified
    from seedbed.config import validate
    from seedbed.evaluation.fixed_targets import load_validation
    from seedbed.evaluation.intrinsic import score
    from seedbed.objectives.combination import entries_of
    from seedbed.recipe import Recipe

    recipe = validate(Recipe, resolved, place=str(run / "pretrain" / "resolved.json"))
    sections = entries_of(recipe.objective)
    stored, baselines = load_validation(open_verified(run / "validation", stage="validation"))
    found: dict[str, Any] = {"rows": stored.num_rows, "rows_of_split": stored.total_rows}
    if len(sections) == 1:
        objective = sections[0].objective.build(
            vocabulary, row_length=recipe.data.row_length, is_segmented=recipe.data.is_segmented
        )
        if (
            objective.modules(modules["trunk"], modules["head"]).keys() <= modules.keys()
            and not objective.frozen()
        ):
            scores = score(objective, modules, stored, device=device, compute_dtype=dtype)
            return found | {"scores": scores, "baselines": baselines, "measured": "now"}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found | {
        "scores": summary["valid"],
        "baselines": summary["baselines"],
        "measured": "at the end of the run",
    }


def _run_folder(path: Path) -> Path | None:
    """Return the run a model belongs to, when its stages are there."""
    for candidate in (path, path.parent):
        if (candidate / "tokens").exists() and (candidate / "pretrain" / "resolved.json").exists():
            return candidate
    return None


def _show(console: Console, result: dict[str, Any]) -> None:
    """Print the figures as tables."""
    if "stored_targets" in result:
        stored = result["stored_targets"]
        console.heading(f"stored validation targets ({stored['rows']} of {stored['rows_of_split']} rows)")
        _table(console, stored["scores"], stored["baselines"])
        if stored["measured"] != "now":
            console.note(
                f"measured {stored['measured']}: the model folder does not hold all its objective trained"
            )
    text = result["text"]
    console.heading(
        f"text, by {result['objective']}: {text['documents']:,} of {text['of_documents']:,} documents,"
        f" {quantity(text['bytes'], 'bytes')}"
    )
    _table(console, result["scores"], result["baselines"])
    sample = result.get("pseudo_log_likelihood")
    if sample:
        console.note(
            f"pseudo-log-likelihood: {sample['bits_per_byte']:.3f} bits a byte on {sample['lines']} lines"
            f" ({sample['tokens']:,} tokens, {quantity(sample['bytes'], 'bytes')}) chosen by hash of {sample['of_lines']:,}"
        )
    if result["rejected"]:
        console.note(f"{len(result['rejected'])} lines or files rejected; --json lists them")


_LABELS = {
    "loss": ("loss, nats a target", "{:.3f}"),
    "bits_per_byte": ("bits a byte", "{:.3f}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "accuracy_top5": ("accuracy within five", "{:.1%}"),
    "targets": ("targets", "{:,.0f}"),
}


def _table(console: Console, scores: dict[str, float], baselines: dict[str, float] | None) -> None:
    """Print scores, the losses beside what can be had without a model; with several terms, one block each."""
    floors = baselines or {}
    prefixes = sorted({name.rpartition(".")[0] for name in scores})
    for prefix in prefixes:
        start = f"{prefix}." if prefix else ""
        own = {name.removeprefix(start): v for name, v in floors.items() if name.rpartition(".")[0] == prefix}
        rows = []
        for key, (label, form) in _LABELS.items():
            if start + key in scores:
                cells = [f"{v:.3f}" for v in own.values()] if key == "loss" else [""] * len(own)
                rows.append([label, form.format(scores[start + key]), *cells])
        known = {start + key for key in _LABELS}
        rows += [
            [name.removeprefix(start).replace("_", " "), f"{value:.3f}", *[""] * len(own)]
            for name, value in scores.items()
            if name.rpartition(".")[0] == prefix and name not in known
        ]
        console.table(rows, header=[prefix, "this model", *own])
