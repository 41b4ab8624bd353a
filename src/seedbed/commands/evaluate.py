"""Score a model: on a run's own stored validation targets, or on text files of your own.

Prints loss, perplexity and accuracy at the targets, bits per byte (causal) or pseudo-log-likelihood per byte (masked),
beside what the corpus alone predicts at the same targets. docs/evaluation.md says what each figure counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.commands.console import Console, quantity

if TYPE_CHECKING:
    import torch

    from seedbed.api import LoadedModel

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
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="number type of the matrix products",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Score the model."""
    import json

    from seedbed.api import load
    from seedbed.artifact import open_verified
    from seedbed.corpus.pipeline import CorpusConfig, iter_documents, read_documents
    from seedbed.corpus.rejects import Reject
    from seedbed.data.store import TokenStore, check_tokenizer
    from seedbed.errors import ConfigError
    from seedbed.evaluation.fixed_targets import load_validation
    from seedbed.evaluation.intrinsic import score
    from seedbed.evaluation.text import evaluate_texts
    from seedbed.objectives import CausalLMConfig, MaskedLMConfig, Vocabulary
    from seedbed.runtime import RuntimeConfig, prepare_process

    console = Console(as_json=options.json)
    runtime = RuntimeConfig(device=options.device, precision=options.precision)
    prepare_process(runtime)
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    model = load(options.model, device=device)
    run_folder = _run_folder(options.model)
    settings = {"row_length": 128, "is_segmented": False}
    if run_folder is not None:
        resolved = json.loads((run_folder / "pretrain" / "resolved.json").read_text(encoding="utf-8"))[
            "resolved"
        ]
        settings = {key: resolved["data"][key] for key in settings}
    row_length = options.row_length or min(int(settings["row_length"]), model.model.config.max_length)
    vocabulary = Vocabulary.of(model.tokenizer)
    if options.pairs is not None:
        return _judge_pairs(
            options, console, model, run_folder, row_length=row_length, device=device, compute_dtype=dtype
        )
    config = CausalLMConfig() if model.is_causal else MaskedLMConfig()
    objective = config.build(vocabulary, row_length=row_length, is_segmented=bool(settings["is_segmented"]))
    objective.check(model.model.config)
    modules = _modules(model)

    train = None
    result: dict[str, Any] = {
        "model": str(model.path),
        "precision": str(dtype).removeprefix("torch."),
        "row_length": row_length,
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
        stored, baselines = load_validation(open_verified(run_folder / "validation", stage="validation"))
        result["stored_targets"] = {
            "scores": score(objective, modules, stored, device=device, compute_dtype=dtype),
            "baselines": baselines,
            "rows": stored.num_rows,
            "rows_of_split": stored.total_rows,
        }
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
            max_pll_tokens=options.pll_tokens,
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


def _modules(model: LoadedModel) -> dict[str, Any]:
    from seedbed.errors import IncompatibleError

    if model.model.head is None:
        raise IncompatibleError(
            f"{model.path} has no language-model head; there is no loss to compute.",
            hint="load a folder that was saved with its head",
        )
    return {"trunk": model.model.trunk, "head": model.model.head}


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
        console.table(
            _rows(stored["scores"], stored["baselines"]),
            header=["", "this model", *stored["baselines"]],
        )
    text = result["text"]
    console.heading(
        f"text: {text['documents']:,} of {text['of_documents']:,} documents, {quantity(text['bytes'], 'bytes')}"
    )
    console.table(
        _rows(result["scores"], result["baselines"]),
        header=["", "this model", *(result["baselines"] or {})],
    )
    sample = result.get("pseudo_log_likelihood")
    if sample:
        console.note(
            f"pseudo-log-likelihood: {sample['bits_per_byte']:.3f} bits a byte on {sample['lines']} lines"
            f" ({sample['tokens']:,} tokens, {quantity(sample['bytes'], 'bytes')}) chosen by hash of {sample['of_lines']:,}"
        )
    if result["rejected"]:
        console.note(f"{len(result['rejected'])} lines or files rejected; --json lists them")


def _rows(scores: dict[str, float], baselines: dict[str, float] | None) -> list[list[str]]:
    floors = [f"{value:.3f}" for value in (baselines or {}).values()]
    blank = [""] * len(floors)
    rows = [
        ["loss, nats a target", f"{scores['loss']:.3f}", *floors],
        ["perplexity", f"{scores['perplexity']:.1f}", *blank],
        ["accuracy", f"{scores['accuracy']:.1%}", *blank],
        ["accuracy within five", f"{scores['accuracy_top5']:.1%}", *blank],
        ["targets", f"{scores['targets']:,.0f}", *blank],
    ]
    if "bits_per_byte" in scores:
        rows.insert(1, ["bits a byte", f"{scores['bits_per_byte']:.3f}", *blank])
    return rows
