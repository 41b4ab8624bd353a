"""Say what checkpoints cost: the share of the training time at the default interval, and the seconds until a run goes on.

A run of the preset takes a few steps; then full checkpoints (weights, optimizer, state, manifest, flushed to the disk) are saved
and loaded in turn, and last the command itself is started again on the run, as a user would, and timed from its start until it
has the checkpoint back, has trained one step more and saved again. Nothing else should run on the machine.

    python benchmarks/checkpoint_cost.py --preset mini
    python benchmarks/checkpoint_cost.py --preset small --vocab 16384 --json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = measure(options, Path(folder))
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(
            f"{report['megabytes']:.0f} MB a checkpoint: saved in {report['save_seconds']:.2f} s,"
            f" {report['cost']:.2%} of the time at one in {report['interval_minutes']:g} minutes; loaded and verified in"
            f" {report['load_seconds']:.2f} s; the command"
            f" had taken and saved its next step {report['resume_seconds']:.1f} s after its start"
        )


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Train a little, then save and load in turn, then resume."""
    from seedbed.commands.assembly import assemble, feed_of, run_window
    from seedbed.commands.console import Console
    from seedbed.commands.deciding import decide
    from seedbed.commands.stages import prepare
    from seedbed.config import load_config
    from seedbed.corpus.bundled import bundled_corpus
    from seedbed.recipe import Recipe
    from seedbed.runtime import prepare_process
    from seedbed.training.checkpoint import Checkpoints

    keys = [
        f"run={folder / 'run'}",
        f'corpus.inputs=["{bundled_corpus("en")}"]',
        f"tokenizer.vocab_size={options.vocab}",
        f"model.preset={options.preset}",
        "training.budget_steps=40",
    ]
    recipe = load_config(Recipe, None, keys)
    prepare_process(recipe.runtime)
    setting = assemble(recipe, prepare(recipe, Console(as_json=True)))
    feed = feed_of(setting, decide(recipe, setting, lambda: None))
    for _ in range(2):
        run_window(setting, setting.state, recipe, feed)
        setting.state.window += 1
    checkpoints = Checkpoints(folder / "checkpoints", inputs={}, keep_weights=0)
    saves, loads = [], []
    for _ in range(options.rounds):
        began = time.perf_counter()
        checkpoints.save(setting.state, extra={})
        saves.append(time.perf_counter() - began)
        began = time.perf_counter()
        newest = checkpoints.newest()
        assert newest is not None
        checkpoints.load(setting.state, newest)
        loads.append(time.perf_counter() - began)
        num_bytes = sum(p.stat().st_size for p in newest.path.iterdir())
        shutil.rmtree(folder / "checkpoints")
    (folder / "recipe.yaml").write_text("{}\n")
    words = [sys.executable, "-m", "seedbed", "pretrain", str(folder / "recipe.yaml"), *keys, "--stop-after"]
    subprocess.run([*words, "2"], check=True, capture_output=True)
    began = time.perf_counter()
    subprocess.run([*words, "3"], check=True, capture_output=True)
    interval = recipe.training.checkpoint_minutes
    save = statistics.median(saves)
    return {
        "preset": options.preset,
        "megabytes": num_bytes / 1e6,
        "save_seconds": save,
        "interval_minutes": interval,
        "cost": save / (60 * interval + save),
        "load_seconds": statistics.median(loads),
        "resume_seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    main()
