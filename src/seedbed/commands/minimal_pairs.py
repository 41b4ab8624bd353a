"""Judge a model by minimal pairs: it should find the acceptable sentence of two likelier.

Files are JSON lines in BLiMP's layout (sentence_good, sentence_bad, UID, phenomenon, field), plain or compressed; `english` is no
file but pairs of common words made by this package (agreement, word order, negation, reference). A causal
model adds up the log-probabilities of a sentence's tokens; a masked one hides each token in turn; a hybrid can be asked
either way. 50 % is chance.
docs/evaluation.md says more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedbed.commands.console import Console
from seedbed.commands.judging import add_judging_arguments, open_model, pair_method

EXAMPLES = """examples:
  seedbed minimal-pairs runs/wiki-en english
  seedbed minimal-pairs runs/wiki-en blimp/*.jsonl
  seedbed minimal-pairs runs/wiki-zh sling.jsonl.gz --max-pairs 50 --by UID
  seedbed minimal-pairs runs/wiki-en blimp/*.jsonl --method pll_word_l2r --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a run folder, its model folder, or a Hugging Face folder")
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines, also .gz and .zst; or `english`")
    parser.add_argument(
        "--method",
        choices=("likelihood", "pll", "pll_word_l2r", "detection", "infill_span", "infill_text"),
        help="likelihood (causal); pll: each token hidden alone; pll_word_l2r: with the rest of its word; detection: how sure a"
        " model of replaced tokens is of each; infill_span, infill_text: an encoder-decoder writes each word left out, by itself"
        " or in the whole text. Default: by model, likelihood for hybrids",
    )
    parser.add_argument(
        "--max-pairs", type=int, default=0, metavar="N", help="pairs of each paradigm, chosen by hash; 0: all"
    )
    parser.add_argument(
        "--by",
        choices=("field", "phenomenon", "UID", "length"),
        default="phenomenon",
        help="rows of the table (default phenomenon; --json has all of them)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="write every pair with both scores (JSON lines)"
    )
    add_judging_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Score the pairs."""
    from seedbed.errors import DataError, disk_errors
    from seedbed.evaluation.english_pairs import ENGLISH, english_pairs
    from seedbed.evaluation.minimal_pairs import MinimalPair, choose_pairs, read_pairs, report, score_pairs

    console = Console(as_json=options.json)
    model, _, dtype = open_model(options.model, options)
    pairs: list[MinimalPair] = english_pairs() if ENGLISH in options.files else []
    rejected: list[tuple[str, int, str]] = []
    if files := [path for path in options.files if path != ENGLISH]:
        read, rejected = read_pairs(files)
        pairs += read
    with console.bars():
        scores = score_pairs(
            model.model,
            model.tokenizer,
            choose_pairs(pairs, options.max_pairs),
            method=options.method or pair_method(model),
            is_shifted=model.is_shifted,
            compute_dtype=dtype,
            progress=console.progress,
        )
    if not scores.pairs:
        raise DataError(
            f"none of {len(pairs)} pairs could be scored: {scores.left_out[0][2]}.",
            hint="use a model with more positions",
        )
    result: dict[str, Any] = {
        "model": str(model.path),
        **report(scores),
        "rejected": [{"file": f, "line": n, "reason": r} for f, n, r in [*rejected, *scores.left_out][:1000]],
    }
    if options.save is not None:
        lines = [
            {"file": p.file, "line": p.line, "UID": p.uid, "good": float(g), "bad": float(b)}
            for p, g, b in zip(scores.pairs, scores.good, scores.bad, strict=True)
        ]
        with disk_errors(options.save, doing="writing"):
            options.save.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = [
        [name, f"{group['accuracy']:.1%}", f"{group['standard_error']:.1%}", f"{group['pairs']:,}"]
        for name, group in result["by"][options.by].items()
    ]
    console.table(rows, header=[options.by, "accuracy", "+-", "pairs"])
    if result["same"]:
        console.note(
            f"{result['same']:,} pairs are the same tokens to this vocabulary; they count half a point each"
        )
    if left := len(rejected) + result["left_out"]:
        console.note(f"{left:,} lines or pairs left out; --json lists them")
    console.result(
        result,
        text=f"{result['accuracy']:.1%} of {result['pairs']:,} pairs ({result['method']}, chance 50 %);"
        f" mean over {len(result['by']['UID'])} paradigms {result['accuracy_over_paradigms']:.1%}{_of_lengths(result)}",
    )
    return 0


def _of_lengths(result: Mapping[str, Any]) -> str:
    """Return what is to be said where sentences of a pair differ in length; a sum over tokens favours the shorter one."""
    groups = result["by"]["length"]
    one = groups.get("one length", {"pairs": 0})
    if one["pairs"] == result["pairs"]:
        return ""
    told = f"\n{result['pairs'] - one['pairs']:,} pairs are of two lengths, and sums favour the shorter sentence:"
    told += "".join(f" {name} {own['accuracy']:.1%} of {own['pairs']:,}," for name, own in groups.items())
    return f"{told} and by the mean over tokens {result['per_token']:.1%} of all"
