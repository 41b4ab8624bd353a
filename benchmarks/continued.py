"""Go on from one domain to another with several shares of replay, and print what each gained and what it forgot.

A base model is trained on the old text, then the same model goes on with the new text once for each share, for as many steps as
the first arm; a last arm without replay has a limit on forgetting, so that the stop rule is seen acting. Every arm runs in a
process of its own and its result is written at once: stopped, the same command goes on. Nothing else should run on the machine.

    python benchmarks/continued.py path/to/wiki-en.txt.gz path/to/books-en.txt.gz runs/continued --base-minutes 20 --minutes 10
    python benchmarks/continued.py old.txt new.txt runs/continued --shares 0 0.1 0.3 --set optim.learning_rate=1e-3

Losses of all arms are at the same stored targets: the old text's and the new text's validation splits, tokenised alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run what has no result yet, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="file or folder of the old text")
    parser.add_argument("new", help="file or folder of the new text")
    parser.add_argument("out", type=Path, help="folder of the runs and results")
    parser.add_argument("--base-minutes", type=float, default=20.0)
    parser.add_argument(
        "--base", type=Path, metavar="RUN", help="a finished run on the old text to go on from"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of the first arm; the others take as many steps"
    )
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.0, 0.1, 0.3], help="of replay, an arm each"
    )
    parser.add_argument(
        "--max-forgetting",
        type=float,
        help="nats, of the arm that is to be stopped; default: half of what the first arm forgot",
    )
    parser.add_argument("--preset", default="mini")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for all arms but the base"
    )
    parser.add_argument(
        "--set-base", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for the base"
    )
    parser.add_argument("--arm", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm is not None:
        print("RESULT " + json.dumps(run_arm(options, **options.arm)))
        return
    results = options.out / "results.json"
    done: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}

    def arm(name: str, **keys: Any) -> dict[str, Any]:
        if name not in done:
            command = [sys.executable, __file__, *sys.argv[1:], "--arm", json.dumps({"name": name, **keys})]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            (found,) = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
            done[name] = json.loads(found.removeprefix("RESULT "))
            options.out.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps(done, indent=1) + "\n")
        return dict(done[name])

    arm("base")
    first, *others = options.shares
    steps = arm(f"replay {first:g}", share=first)["steps"]
    for share in others:
        arm(f"replay {share:g}", share=share, steps=steps)
    limit = options.max_forgetting or max(0.001, done[f"replay {first:g}"]["forgotten"] / 2)
    arm(f"replay {first:g}, limit {limit:.3f}", share=first, steps=steps, limit=limit)
    print(table(done))


def run_arm(
    options: argparse.Namespace, *, name: str, share: float = 0.0, steps: int = 0, limit: float | None = None
) -> dict[str, Any]:
    """Train the base or one arm; return what the table needs."""
    from seedbed.commands.console import Console
    from seedbed.commands.pretraining import pretrain
    from seedbed.commands.report import write_report
    from seedbed.commands.stages import prepare
    from seedbed.config import load_config
    from seedbed.lock import owned
    from seedbed.recipe import Recipe

    base = options.base or options.out / "base"
    if name == "base" and options.base:
        finished = json.loads((base / "summary.json").read_text(encoding="utf-8"))
        return {
            key: finished[key] for key in ("steps", "tokens", "tokens_per_second", "valid_loss", "baselines")
        }
    if name == "base":
        overrides = [f"run={base}", f"corpus.inputs=[{options.old}]", f"model.preset={options.preset}"]
        overrides += [f"training.budget_minutes={options.base_minutes}", *options.set_base]
    else:
        folder = options.out / name.replace(" ", "-").replace(",", "")
        budget = f"training.budget_steps={steps}" if steps else f"training.budget_minutes={options.minutes}"
        overrides = [f"run={folder}", f"corpus.inputs=[{options.new}]", f"start.path={base}", budget]
        overrides += [f"start.replay.share={share}", *([f"start.max_forgetting={limit}"] if limit else [])]
        overrides += options.set
    recipe = load_config(Recipe, None, overrides)
    console = Console(as_json=True)
    with owned(recipe.run_folder()):
        summary = pretrain(recipe, prepare(recipe, console), console)
    write_report(recipe.run_folder())
    keys = ("steps", "tokens", "tokens_per_second", "valid_loss", "baselines")
    result = {key: summary[key] for key in keys} | summary.get("continued", {})
    if name != "base":
        plan = json.loads((recipe.run_folder() / "pretrain" / "plan.json").read_text(encoding="utf-8"))
        result |= {"steps_planned": plan["num_windows"]}
    return result


def table(results: dict[str, Any]) -> str:
    """Return all arms as a table, and why any stopped early."""
    lines = [
        "| arm | steps | new loss before | after | gained | old loss before | after | forgotten |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reasons = []
    for name, result in results.items():
        if name == "base":
            base = f"base: {result['steps']:,} steps, old text's validation loss {result['valid_loss']:.3f}"
            continue
        figures = [f"{result['steps']:,} of {result['steps_planned']:,}"]
        for text, change in (("new", "gained"), ("old", "forgotten")):
            figures += [f"{result[f'{text}_loss_{when}']:.3f}" for when in ("before", "after")]
            figures.append(f"**{result[change]:+.3f}**")
        lines.append("| " + " | ".join([name, *figures]) + " |")
        if result["stopped_because"]:
            reasons.append(f"{name}: stopped {result['stopped_because']}")
    return "\n".join([base, "", *lines, "", *reasons])


if __name__ == "__main__":
    main()
