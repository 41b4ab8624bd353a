"""What the commands that judge a model share: where it is, on which device and in which numbers it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from seedbed.api import LoadedModel

__all__ = ["add_judging_arguments", "open_model"]


def add_judging_arguments(
    parser: argparse.ArgumentParser, *, precision: Literal["auto", "float32"] = "float32"
) -> None:
    """Declare --precision, --device and --json.

    Args:
        parser: of the command.
        precision: the default; "float32" where small differences decide.
    """
    why = ": small differences decide" if precision == "float32" else ""
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        default=precision,
        help=f"number type of the matrix products (default {precision}{why})",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute (default auto: a GPU where there is one)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def open_model(path: Path, options: argparse.Namespace) -> tuple[LoadedModel, torch.device, torch.dtype]:
    """Prepare the process as the options say and load a model; return it, its device and the type of products."""
    from seedbed.api import load
    from seedbed.runtime import RuntimeConfig, prepare_process

    runtime = RuntimeConfig(device=options.device, precision=options.precision)
    prepare_process(runtime)
    device = runtime.torch_device()
    return load(path, device=device), device, runtime.compute_dtype()
