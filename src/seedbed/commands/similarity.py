"""Judge a model's sentence vectors: rank correlation of their cosines with people's scores of similarity.

Files hold a pair of sentences and a score a line: CSV or TSV (without a header, columns 0, 1 and 2, as STS-B's) or JSON lines,
plain or compressed. Every vector the model can give is judged: the mean of the last states, the first token's (encoders), the
last token's (decoders). docs/evaluation.md says more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from seedbed.commands.console import Console
from seedbed.commands.judging import add_judging_arguments, open_model

EXAMPLES = """examples:
  seedbed similarity runs/simcse-en stsb/en-dev.csv
  seedbed similarity runs/wiki-zh stsb/zh-dev.csv --pooling mean --json
  seedbed similarity path/to/model pairs.tsv --columns sentence1 sentence2 score"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a run folder, its model folder, or a Hugging Face folder")
    parser.add_argument("files", nargs="+", type=Path, help="CSV, TSV or JSON lines, also .gz and .zst")
    parser.add_argument(
        "--columns",
        nargs=3,
        default=["0", "1", "2"],
        metavar=("FIRST", "SECOND", "SCORE"),
        help="names of the columns, or their numbers from 0 in files without a header (default 0 1 2)",
    )
    parser.add_argument("--pooling", choices=("cls", "mean", "last"), help="judge this vector only")
    add_judging_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Judge every file."""
    import numpy as np

    from seedbed.errors import DataError
    from seedbed.evaluation.similarity import score_similarity, sentence_vectors
    from seedbed.tasks import TaskConfig, read_examples

    console = Console(as_json=options.json)
    model, device, dtype = open_model(options.model, options)
    are_numbers = all(column.isdecimal() for column in options.columns)
    first, second, score = (int(column) if are_numbers else column for column in options.columns)
    columns = TaskConfig(
        name="similarity",
        kind="regression",
        text=first,
        text_pair=second,
        label=score,
        has_header=not are_numbers,
    )
    files: dict[str, Any] = {}
    for path in options.files:
        examples, rejected, num_rejected = read_examples(columns, [path])
        if len(examples) < 2:
            raise DataError(
                f"{path} holds {len(examples)} pairs with a score.",
                hint="--columns says which column is which",
            )
        texts = [e.text for e in examples] + [e.text_pair or "" for e in examples]
        with console.bars():
            vectors = sentence_vectors(
                model.model,
                model.tokenizer,
                texts,
                poolings=None if options.pooling is None else [options.pooling],
                device=device,
                compute_dtype=dtype,
                progress=console.progress,
            )
        scores = np.array([float(e.label) for e in examples])
        count = len(examples)
        files[str(path)] = {
            "pairs": count,
            "cut": vectors.num_cut,
            "rejected": {
                "lines": num_rejected,
                "first": [f"{r.file}, line {r.line}: {r.reason}" for r in rejected[:20]],
            },
            "scores": {
                pooling: score_similarity(found[:count], found[count:], scores)
                for pooling, found in vectors.by_pooling.items()
            },
        }
    rows = [
        [
            Path(path).name,
            pooling,
            f"{found['spearman']:.4f}",
            f"{found['pearson']:.4f}",
            "-" if found["alignment"] is None else f"{found['alignment']:.3f}",
            f"{found['uniformity']:.3f}",
            f"{result['pairs']:,}",
        ]
        for path, result in files.items()
        for pooling, found in result["scores"].items()
    ]
    console.table(rows, header=["file", "vector", "spearman", "pearson", "alignment", "uniformity", "pairs"])
    if cut := sum(result["cut"] for result in files.values()):
        console.note(f"{cut:,} sentences are longer than the model reads and were cut")
    if left := sum(result["rejected"]["lines"] for result in files.values()):
        console.note(f"{left:,} lines left out; --json lists the first of them")
    console.result({"model": str(model.path), "files": files})
    return 0
