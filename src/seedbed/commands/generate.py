"""Let a causal model continue a text."""

from __future__ import annotations

import argparse
from pathlib import Path

from seedbed.commands.console import Console

EXAMPLES = """examples:
  seedbed generate runs/causal "Once upon a time"
  seedbed generate runs/causal "话说" --temperature 0 --max-new-tokens 100"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a run folder, its model folder, or a Hugging Face folder")
    parser.add_argument(
        "prompt", nargs="*", default=[""], help="beginnings to continue; none starts a document"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="tokens to add at most (default 64)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="0: always the most probable (default 0.8)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw from the K most probable; 0: all (default)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="draw from the most probable share P (default 0.95)",
    )
    parser.add_argument(
        "--after",
        metavar="TEXT",
        help="write what belongs between the prompt and this text (models of objective fill_in_middle)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Continue every prompt."""
    from seedbed.api import load

    console, model = Console(as_json=options.json), load(options.model)
    results = []
    for prompt in options.prompt or [""]:
        settings = {
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "seed": options.seed,
        }
        if options.after is None:
            text = model.generate(prompt, **settings)
        else:
            text = prompt + model.fill_in(prompt, options.after, **settings) + options.after
        results.append({"prompt": prompt, "text": text})
    console.result({"results": results}, text="\n\n".join(str(r["text"]) for r in results))
    return 0
