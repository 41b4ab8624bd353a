"""Switch off one at a time what makes a training step fast on a CPU, and print what it costs.

Every arm is a process of its own that takes the mini preset's steps on the bundled English corpus (64 rows of 128
tokens, or with --causal a GPT-2's 16 rows of 512); rounds go through the arms in turn. Printed are medians of the
median step, in tokens a second, and the ratio to the default. Nothing else should run on the machine.

    python benchmarks/step_ablation.py --json
    python benchmarks/step_ablation.py --causal
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ARMS = {
    "default": "everything on",
    "float32": "matrix products in float32",
    "everywhere": "head and last layer at every position, the loss at the targets",
    "plain_loss": "the loss over the vocabulary in PyTorch's plain form",
    "fused": "PyTorch's fused attention instead of our forms of it",
    "whole": "attention by whole batched products instead of blocks",
    "allocator": "glibc's own thresholds instead of raised ones",
    "spinning": "OpenMP threads spin for milliseconds while they wait",
    "sleeping": "OpenMP threads sleep at once",
    "compiled": "runtime.compile=true",
    "dropout": "hidden dropout 0.1, by hash",
    "f_dropout": "hidden dropout 0.1, by F.dropout",
    "micro16": "micro-batches of 16 rows",
}

ENVIRONMENTS = {"spinning": {"OMP_WAIT_POLICY": "ACTIVE"}, "sleeping": {"GOMP_SPINCOUNT": "0"}}
MASKED_ONLY, CAUSAL_ONLY = {"everywhere", "micro16"}, {"whole"}


def main() -> None:
    """Run all arms in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--causal", action="store_true", help="a GPT-2 block in rows of 512")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="only these")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(f"RESULT {arm(options):.1f}")
        return
    with tempfile.TemporaryDirectory() as folder:
        options.run = Path(folder) / "run"
        prepare_run(options)
        kept = options.arms or [n for n in ARMS if n not in (MASKED_ONLY if options.causal else CAUSAL_ONLY)]
        rates: dict[str, list[float]] = {name: [] for name in ("default", *kept)}
        for _ in range(options.rounds):
            for name in rates:
                words = [sys.executable, __file__, "--arm", name, "--run", str(options.run)]
                words += ["--causal"] if options.causal else []
                environment = {**os.environ, **ENVIRONMENTS.get(name, {})}
                done = subprocess.run(
                    [*words, "--steps", str(options.steps)],
                    capture_output=True,
                    text=True,
                    env=environment,
                    check=True,
                )
                rates[name].append(float(done.stdout.split("RESULT ")[1]))
    default = statistics.median(rates["default"])
    table = {
        name: {
            "what": ARMS[name],
            "tokens_per_second": round(statistics.median(values), 1),
            "ratio": round(statistics.median(values) / default, 3),
            "rounds": [round(v, 1) for v in values],
        }
        for name, values in rates.items()
    }
    if options.json:
        print(json.dumps(table, indent=1))
    else:
        for row in table.values():
            print(f"{row['tokens_per_second']:>9,.0f} tokens/s  {row['ratio']:.2f}  {row['what']}")


def recipe_of(options: argparse.Namespace, *changes: str):
    """Return the demo's recipe with an arm's changes."""
    from seedbed.config import load_config
    from seedbed.corpus.bundled import bundled_corpus
    from seedbed.recipe import Recipe

    inputs = f'corpus.inputs=["{bundled_corpus("en")}"]'
    if options.causal:
        changes = ("model.name=gpt2", "objective.name=causal_lm", "data.row_length=512", *changes)
    return load_config(Recipe, None, [f"run={options.run}", inputs, "training.budget_steps=100", *changes])


def prepare_run(options: argparse.Namespace) -> None:
    """Make what all arms read."""
    from seedbed.commands.console import Console
    from seedbed.commands.stages import prepare

    prepare(recipe_of(options), Console(as_json=True))


def arm(options: argparse.Namespace) -> float:
    """Return the tokens a second of one arm."""
    from seedbed import runtime
    from seedbed.commands.assembly import assemble, feed_of, run_window
    from seedbed.commands.console import Console
    from seedbed.commands.stages import prepare
    from seedbed.models import transformer
    from seedbed.models.layers import dropout
    from seedbed.objectives import base, masked_lm, summed_loss
    from seedbed.training.budget import Plan

    changes = {
        "float32": ["runtime.precision=float32"],
        "dropout": ["model.hidden_dropout=0.1"],
        "f_dropout": ["model.hidden_dropout=0.1"],
        "compiled": ["runtime.compile=true"],
    }.get(options.arm, [])
    if options.arm == "allocator":
        runtime.tune_allocator = lambda: False
    if options.arm == "fused":
        transformer.form_for = lambda **_: "fused"
    if options.arm == "whole":
        transformer.form_for = lambda **_: "batched"
    if options.arm == "plain_loss":
        summed_loss.applies = lambda logits: False
    if options.arm == "f_dropout":
        import torch.nn.functional as F

        dropout.Dropout.hidden = lambda self, values, **_: F.dropout(values, self.hidden_rate)
    if options.arm == "everywhere":

        def predict(self, modules, batch, targets, **options):
            hidden = modules["trunk"](batch, **options)
            head, target = modules["head"], targets["masked_lm"]

            def whole(features):
                return head(hidden.last.flatten(0, 1)).index_select(0, target.at)

            return {"masked_lm": base.Prediction(hidden.last, whole, target)}

        masked_lm.MaskedLM.predict = predict
    recipe = recipe_of(options, *changes)
    runtime.prepare_process(recipe.runtime)
    setting = assemble(recipe, prepare(recipe, Console(as_json=True)))
    rows = 16 if options.causal else 64
    feed = feed_of(setting, Plan(100, rows, 16 if options.arm == "micro16" else rows, 0.0, ""))
    times = []
    for _ in range(options.steps):
        began = time.perf_counter()
        result = run_window(setting, setting.state, recipe, feed)
        float(result.gradient_norm)
        setting.state.window += 1
        times.append(time.perf_counter() - began)
    return 64 * 128 / statistics.median(times[2:])


if __name__ == "__main__":
    main()
