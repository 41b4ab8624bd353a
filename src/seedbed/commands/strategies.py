"""Print the objectives: what each learns from, which models it trains, when to use it, and where it comes from."""

from __future__ import annotations

import argparse
from typing import Any

from seedbed.commands.console import Console

EXAMPLES = """examples:
  seedbed strategies
  seedbed strategies --fits decoder

Switch with objective.name=... in a recipe. Several objectives train in one run with
objective.name=mixture (docs/strategies.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--fits",
        choices=("encoder", "decoder", "encoder_decoder"),
        help="only objectives that train this kind of model",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from seedbed.models import MODELS
    from seedbed.objectives import OBJECTIVES
    from seedbed.objectives.combination import COMBINATIONS

    stacks = {name: kind.stack for name, kind in MODELS.items()}
    kinds: dict[str, Any] = {**OBJECTIVES, **COMBINATIONS}
    strategies: list[dict[str, Any]] = [
        {
            "name": name,
            "fits": list(kind.fits),
            "models": [family for family, stack in stacks.items() if stack in kind.fits],
            "default_model": kind.default_model,
            "needs": kind.needs,
            "use": kind.use,
            "source": kind.source,
        }
        for name, kind in kinds.items()
        if options.fits is None or options.fits in kind.fits
    ]
    lines = []
    for strategy in strategies:
        lines += [
            strategy["name"],
            f"    trains   {', '.join(strategy['fits'])}"
            + (
                f" (model.name={strategy['default_model']} unless named)" if strategy["default_model"] else ""
            ),
            f"    needs    {strategy['needs']}",
            f"    use for  {strategy['use']}",
            f"    source   {strategy['source']}",
        ]
    lines.append("models (model.name):")
    for stack in ("encoder", "decoder", "encoder_decoder"):
        lines.append(
            f"    {stack:<16} {', '.join(name for name, kind in stacks.items() if kind == stack) or '-'}"
        )
    Console(as_json=options.json).result({"strategies": strategies}, text="\n".join(lines))
    return 0
