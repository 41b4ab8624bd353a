"""The whole journey on a bundled public-domain corpus, in minutes, on a CPU.

Cleans the text, learns an 8k vocabulary, pretrains the mini encoder on four million tokens (cut, and said so, when that
would take more than six minutes), and shows what the model learned. The run folder holds report.html and summary.json.
"""

from __future__ import annotations

import argparse
import signal

from seedbed.commands.console import Console
from seedbed.progress import duration

EXAMPLES = """examples:
  seedbed demo
  seedbed demo --lang zh
  seedbed demo --run runs/mine training.budget_minutes=1"""

TOKENS = 4_000_000
MAX_MINUTES = 6.0
FRACTION = "corpus.validation_fraction=0.1"  # of 110 and 160 chapters: enough targets for a steady loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override any key of the recipe"
    )
    parser.add_argument(
        "--lang", choices=("en", "zh"), default="en", help="which bundled corpus (default en)"
    )
    parser.add_argument("--run", metavar="FOLDER", help="run folder (default runs/demo-en or runs/demo-zh)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--replace", action="store_true", help="start over")


def run(options: argparse.Namespace) -> int:
    """Run the demo."""
    from seedbed.commands.pretraining import Interrupted, pretrain
    from seedbed.commands.report import write_report
    from seedbed.commands.stages import prepare
    from seedbed.config import load_config
    from seedbed.corpus.bundled import bundled_corpus
    from seedbed.lock import owned
    from seedbed.recipe import Recipe

    folder = options.run or f"runs/demo-{options.lang}"
    given = {word.partition("=")[0] for word in options.overrides}
    budget = (
        []
        if given & {"training.budget_minutes", "training.budget_steps", "training.budget_tokens"}
        else [
            f"training.budget_tokens={TOKENS}",
            f"training.max_minutes={MAX_MINUTES}",
        ]
    )
    overrides = [
        f"run={folder}",
        f'corpus.inputs=["{bundled_corpus(options.lang)}"]',
        FRACTION,
        *budget,
        *options.overrides,
    ]
    recipe, console = load_config(Recipe, None, overrides), Console(as_json=options.json)
    with owned(recipe.run_folder()):
        prepared = prepare(recipe, console, replace=options.replace)
        try:
            summary = pretrain(recipe, prepared, console, replace=options.replace)
        except Interrupted as stop:
            console.note(
                f"stopped after step {stop.window:,}; everything is saved. The same command goes on."
            )
            return 128 + signal.Signals(stop.signal_number)
        report = write_report(recipe.run_folder())

    baselines, valid = summary["baselines"], summary["valid"]
    console.heading("what it learned")
    console.table(
        [
            ["guessing evenly", f"{baselines['uniform']:.3f}"],
            ["knowing how frequent each token is (unigram)", f"{baselines['unigram']:.3f}"],
            ["knowing the token to the left as well (bigram)", f"{baselines['bigram']:.3f}"],
            ["this model", f"{summary['valid_loss']:.3f}"],
        ],
        header=["validation loss, nats a token (lower is better)", ""],
    )
    console.note(
        f"of the hidden tokens it gets {valid['accuracy']:.0%} right at once, {valid['accuracy_top5']:.0%} within five"
        f" proposals; trained {duration(summary['train_seconds'])} at {summary['tokens_per_second']:,.0f} tokens a second"
        + (f" ({summary['note']})" if summary["note"] else "")
    )
    for line in _samples(recipe.run_folder() / "pretrain" / "samples.json"):
        console.note(line)
    is_theirs = summary["model_form"] == "huggingface"
    form = "a Hugging Face folder; transformers opens it as it is" if is_theirs else "seedbed opens it"
    example = "Alice was not a bit [MASK]." if options.lang == "en" else "却说曹[MASK]引兵来到。"
    console.result(
        summary,
        text=(
            f"\nmodel:   {summary['model']}   ({form})\n"
            f"report:  {report}\n"
            f'try:     seedbed fill-mask {folder} "{example}"\n'
            "your own text:\n"
            "         seedbed config > recipe.yaml      then name your files in corpus.inputs\n"
            "         seedbed run recipe.yaml"
        ),
    )
    return 0


def _samples(path: object) -> list[str]:
    """Return fill-mask samples before and after training, as lines."""
    import json
    from pathlib import Path

    samples = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    lines = ["", "on validation text, before and after training:"]
    for before, after in zip(samples["before"][:4], samples["after"][:4], strict=True):
        lines.append(f"  {after['text']}   (the author: {after['answer']})")
        for name, sample in (("before", before), ("after", after)):
            said = sample.get("continuation") or "  ".join(
                f"{c['token']} {c['probability']:.0%}" for c in sample["candidates"][:4]
            )
            lines.append(f"    {name:<7} {said}")
    return lines
