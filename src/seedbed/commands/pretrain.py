"""Train a model on the token store. The same command resumes a run that was stopped, exactly where it was."""

from __future__ import annotations

import argparse
import signal

from seedbed.commands.console import Console, add_recipe_arguments, duration, read_recipe

EXAMPLES = """examples:
  seedbed pretrain recipe.yaml training.budget_minutes=20
  seedbed pretrain recipe.yaml objective.name=causal_lm run=runs/causal

Control-C or SIGTERM finishes the step, saves, and says how to go on (exit 130 or 143)."""

add_arguments = add_recipe_arguments


def run(options: argparse.Namespace) -> int:
    """Run every stage up to the model that is not up to date."""
    from seedbed.commands.pretraining import Interrupted, pretrain
    from seedbed.commands.report import write_report
    from seedbed.commands.stages import prepare
    from seedbed.lock import owned

    recipe, console = read_recipe(options), Console(as_json=options.json)
    with owned(recipe.run_folder()):
        prepared = prepare(recipe, console, strict=options.strict, replace=options.replace)
        try:
            summary = pretrain(recipe, prepared, console, replace=options.replace)
        except Interrupted as stop:
            overrides = " ".join(options.overrides)
            console.note(
                f"stopped by {signal.Signals(stop.signal_number).name} after step {stop.window:,}; everything is saved."
                f"\nto go on: seedbed {options.verb} {options.recipe} {overrides}".rstrip()
            )
            return 128 + stop.signal_number
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
