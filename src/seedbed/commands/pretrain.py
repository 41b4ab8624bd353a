"""Train a model on the token store. The same command resumes a run that was stopped, exactly where it was."""

from __future__ import annotations

import argparse
import signal
from contextlib import ExitStack

from seedbed.commands.console import Console, add_recipe_arguments, read_recipe
from seedbed.progress import duration

EXAMPLES = """examples:
  seedbed pretrain recipe.yaml training.budget_minutes=20
  seedbed pretrain recipe.yaml objective.name=causal_lm run=runs/causal
  torchrun --nproc-per-node 2 -m seedbed pretrain recipe.yaml    the same run, on two devices

Control-C or SIGTERM finishes the step, saves, and says how to go on (exit 130 or 143)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--stop-after",
        type=int,
        default=0,
        metavar="STEP",
        help="save and end after this step of the run (exit 0); the same command without it goes on",
    )


def run(options: argparse.Namespace) -> int:
    """Run every stage up to the model that is not up to date."""
    from seedbed.commands.pretraining import Interrupted, pretrain
    from seedbed.commands.report import write_report
    from seedbed.commands.stages import prepare
    from seedbed.lock import owned
    from seedbed.training.parallel import first_worker_first, joined, worker

    recipe = read_recipe(options)
    with joined(device_type=recipe.runtime.torch_device().type), ExitStack() as stack:
        is_first = worker() == 0
        console = Console(as_json=options.json, is_silent=not is_first)
        if is_first:
            stack.enter_context(owned(recipe.run_folder()))
        with first_worker_first():
            replace = options.replace and is_first
            prepared = prepare(recipe, console, strict=options.strict, replace=replace)
        try:
            summary = pretrain(
                recipe, prepared, console, replace=options.replace, stop_after=options.stop_after
            )
        except Interrupted as stop:
            overrides = " ".join(options.overrides)
            by = f" by {signal.Signals(stop.signal_number).name}" if stop.signal_number else ""
            console.note(
                f"stopped{by} after step {stop.window:,}; everything is saved."
                f"\nto go on: seedbed {options.verb} {options.recipe} {overrides}".rstrip()
            )
            if not stop.signal_number:
                console.result({"stopped_after": stop.window})
            return 128 + stop.signal_number if stop.signal_number else 0
        if not is_first:
            return 0
        report = write_report(recipe.run_folder())
    opens = "in transformers as it is" if summary["model_form"] == "huggingface" else "with seedbed"
    floors = ", ".join(
        f"{name} {value:.3f}" for name, value in summary["baselines"].items() if "." not in name
    )
    said = summary.get("continued", {}).get("sentence", "")
    console.result(
        summary,
        text=(
            f"validation loss {summary['valid_loss']:.3f}{f' (without a model: {floors})' if floors else ''}"
            f" after {duration(summary['train_seconds'])},"
            f" {summary['tokens_per_second']:,.0f} tokens/s\n"
            + (f"{said}\n" if said else "")
            + f"model:  {summary['model']}   (opens {opens})\n"
            f"report: {report}"
            + (
                f"\nnext:   {summary['next']}" if "next" in summary else ""
            )  # runs of older versions do not say
        ),
    )
    return 0
