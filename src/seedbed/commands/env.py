"""Print what a bug report needs: versions, processor, threads, number type. No names, no paths, no secrets."""

from __future__ import annotations

import argparse
from importlib import metadata

from seedbed.commands.console import Console

EXAMPLES = "example:\n  seedbed env --json"

_PACKAGES = (
    "numpy",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "pyarrow",
    "pydantic",
    "rjieba",
    "transformers",
    "tensorboard",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Describe the machine."""
    import seedbed
    from seedbed.runtime import available_memory_bytes, describe_machine

    values = {"seedbed": seedbed.__version__, **describe_machine()}
    values["memory_available_gib"] = round(available_memory_bytes() / 2**30, 1)
    for package in _PACKAGES:
        try:
            values[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            values[package] = None
    width = max(map(len, values))
    Console(as_json=options.json).result(
        values,
        text="\n".join(
            f"{name:<{width}}  {value if value is not None else 'not installed'}"
            for name, value in values.items()
        ),
    )
    return 0
