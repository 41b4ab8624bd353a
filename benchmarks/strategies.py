"""Train every strategy for the same minutes on one token store and print what each reaches beside its own baseline.

The store is built once; each strategy trains from it in a process of its own, on the family it trains by default, and its
result is written at once, so that a stopped benchmark goes on where it was. Nothing else should run on the machine.
Losses of different strategies are not comparable with each other; each stands beside what can be had without a model.

    python benchmarks/strategies.py path/to/wiki-en.txt.gz runs/strategies-en --minutes 5
    python benchmarks/strategies.py path/to/wiki-en.txt.gz runs/strategies-en --only masked_lm sentence_order
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from seedbed.objectives import OBJECTIVES
from seedbed.objectives.combination import COMBINATIONS

NEED_FILES = {"classification", "supervised_generation", "contrastive", "distillation", "mixture"}
"""Left out unless named: they start from labelled texts or from another model."""


def main() -> None:
    """Run what has no result yet, then print the table."""
    names = list({**OBJECTIVES, **COMBINATIONS})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="file or folder of text")
    parser.add_argument("out", type=Path, help="folder of the runs and results")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="strategies to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for all")
    parser.add_argument("--arm", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print("RESULT " + json.dumps(run_arm(options)))
        return
    results = options.out / "results.json"
    done: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in options.only or [name for name in names if name not in NEED_FILES]:
        key = name if options.seed == 0 else f"{name}/{options.seed}"
        if key in done:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", name]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
        if not found:
            print(f"{name}: failed\n{process.stderr[-2000:]}", file=sys.stderr)
            continue
        done[key] = json.loads(found[0].removeprefix("RESULT "))
        options.out.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(done, indent=1) + "\n")
        print(row(key, done[key]), flush=True)
    print("\n" + table(done))


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Train one strategy from the shared store; return its summary."""
    from seedbed.commands.console import Console
    from seedbed.commands.pretraining import pretrain
    from seedbed.commands.stages import prepare
    from seedbed.config import load_config
    from seedbed.lock import owned
    from seedbed.recipe import Recipe

    def recipe(run: Path, overrides: list[str]) -> Recipe:
        return load_config(
            Recipe,
            None,
            [
                f"run={run}",
                f"corpus.inputs=[{options.text}]",
                f"model.preset={options.preset}",
                *overrides,
            ],
        )

    console = Console(as_json=True)
    # The store is the same for all, whatever a strategy's own sections say.
    ours = ("corpus.", "tokenizer.", "tokens.", "runtime.")
    base = recipe(options.out / "store", [key for key in options.set if key.startswith(ours)])
    with owned(base.run_folder()):
        prepared = prepare(base, console)
    own = recipe(
        options.out / f"{options.arm}-{options.seed}",
        [
            f"objective.name={options.arm}",
            f"training.budget_minutes={options.minutes}",
            f"training.seed={options.seed}",
            *options.set,
        ],
    )
    with owned(own.run_folder()):
        summary = pretrain(own, replace(prepared, run=own.run_folder()), console)
    keys = (
        "family",
        "parameters",
        "steps",
        "tokens",
        "tokens_per_second",
        "train_seconds",
        "valid",
        "baselines",
    )
    return {key: summary[key] for key in keys}


def row(name: str, result: dict[str, Any]) -> str:
    """Return one line of the table."""
    valid, floors = result["valid"], result["baselines"]
    bare = {key: value for key, value in floors.items() if "." not in key}
    known = ", ".join(f"{key} {value:.3f}" for key, value in bare.items())
    terms = [
        f"{key.removesuffix('.loss')} {valid[key]:.3f}"
        + (f" (of {floor:.3f})" if (floor := term_floor(key, floors)) is not None else "")
        + (f", {valid[hit]:.1%} right" if (hit := key.replace(".loss", ".accuracy")) in valid else "")
        for key in valid
        if key.endswith(".loss")
    ]
    right = f"{valid['accuracy']:.1%}" if "accuracy" in valid else ""
    cells = [name, result["family"], f"{valid['loss']:.3f}", known, right, "; ".join(terms)]
    cells.append(f"{result['tokens'] / 1e6:.2f} M")
    cells.append(f"{result['tokens_per_second']:,.0f}")
    return "| " + " | ".join(cells) + " |"


def term_floor(key: str, floors: dict[str, float]) -> float | None:
    """Return the unigram or the chance of a term."""
    term = key.removesuffix("loss")
    return floors.get(f"{term}unigram", floors.get(f"{term}chance"))


def table(results: dict[str, Any]) -> str:
    """Return all results as a table."""
    header = "| strategy | family | validation loss | without a model | right | by term | tokens | tokens a second |"
    return "\n".join([header, "|---|---|---|---|---|---|---|---|", *(row(n, r) for n, r in results.items())])


if __name__ == "__main__":
    main()
