"""What the commands that judge a model share: where it is, on which device and in which numbers it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from seedbed.api import LoadedModel
    from seedbed.evaluation.minimal_pairs import Method
    from seedbed.objectives import ObjectiveConfig

__all__ = ["add_judging_arguments", "head_and_trunk", "open_model", "pair_method", "text_objective"]


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


def text_objective(model: LoadedModel) -> ObjectiveConfig:
    """Return the objective whose loss says most about how a model reads a text: the one of its kind it was trained by."""
    from seedbed.objectives import OBJECTIVES

    kinds = {
        "encoder": ("masked_lm", "masked_next_token"),
        "decoder": ("causal_lm", "fill_in_middle", "prefix_lm", "masked_next_token", "masked_diffusion"),
        "encoder_decoder": ("span_corruption", "denoising"),
    }[model.model.config.stack]
    trained = [name for name in kinds if name in model.objectives]
    if (
        not trained or trained[0] == "fill_in_middle"
    ):  # foreign folders; and what fills gaps reads plain text causally
        return OBJECTIVES[kinds[0]]()
    return OBJECTIVES[trained[0]]()


def pair_method(model: LoadedModel) -> Method | None:
    """Return how a model is asked for minimal pairs where its kind does not say it.

    A decoder trained by masked next-token prediction alone never read from left to right: it is asked for hidden tokens. An
    encoder-decoder that learned to write whole texts fills gaps by writing the whole text.
    """
    if model.model.config.stack == "encoder_decoder":
        return "infill_text" if "denoising" in model.objectives else None
    is_only_shifted = model.is_shifted and not {"causal_lm", "fill_in_middle", "prefix_lm"} & set(
        model.objectives
    )
    return "pll" if is_only_shifted else None


def head_and_trunk(model: LoadedModel) -> dict[str, Any]:
    """Return the modules a text is scored with.

    Raises:
        IncompatibleError: the model has no language-model head.
    """
    from seedbed.errors import IncompatibleError

    if model.model.head is None:
        raise IncompatibleError(
            f"{model.path} has no language-model head; there is no loss to compute.",
            hint="load a folder that was saved with its head",
        )
    return {"trunk": model.model.trunk, "head": model.model.head}
