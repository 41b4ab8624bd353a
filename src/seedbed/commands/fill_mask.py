"""Let a masked model complete a text: write [MASK] where a word is missing."""

from __future__ import annotations

import argparse
from pathlib import Path

from seedbed.commands.console import Console

EXAMPLES = """examples:
  seedbed fill-mask runs/demo-en "Alice was not a bit [MASK]."
  seedbed fill-mask runs/demo-zh "却说曹[MASK]引兵来到。" --top-k 3 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a run folder, its model folder, or a Hugging Face folder")
    parser.add_argument("text", nargs="+", help="texts with one or more masks")
    parser.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="proposals for each mask (default 5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Fill the masks of every text."""
    from dataclasses import asdict

    from seedbed.api import load

    console, model = Console(as_json=options.json), load(options.model)
    lines: list[str] = []
    results = []
    for text in options.text:
        masks = model.fill_mask(text, top_k=options.top_k)
        results.append({"text": text, "masks": [[asdict(c) for c in candidates] for candidates in masks]})
        for number, candidates in enumerate(masks, start=1):
            lines.append(text if len(masks) == 1 else f"{text}   (mask {number})")
            lines += [f"  {c.probability:6.1%}  {c.token}" for c in candidates]
    console.result({"results": results}, text="\n".join(lines))
    return 0
