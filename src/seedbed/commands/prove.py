"""Show on your own recipe that a run repeats: stopped, killed, on other numbers of workers.

The recipe is trained for twice K steps once. Then the same again, stopped after K steps and resumed; killed in the middle and
resumed; with another number of workers; and on one worker first and that number after. Rows, losses, weights and optimizer of
each are compared with the first. On one machine and number of workers every bit must agree. With another number of workers the
rows must be the same and the losses within a tolerance, since sums are added up in another order; with training.exact=true every
bit must agree there too. Where the workers share weights (runtime.sharding), a run on them is also stopped and resumed, and must
agree to the bit with the one that was not.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seedbed.commands.console import Console, add_recipe_arguments, read_recipe

EXAMPLES = """examples:
  seedbed prove recipe.yaml
  seedbed prove recipe.yaml --steps 100 --workers 4
  seedbed prove recipe.yaml training.exact=true

The run folder gets the stages it lacks, and a folder prove/ with everything that was trained and prove.json; nothing else in it
is touched. Exit code 8 means that something was not as it must be."""

LOSS_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 5e-3}
"""Relative, over the first steps with another number of workers; bfloat16 rounds to 3 digits."""
TOLERATED_STEPS = 20
"""Later steps are only reported: a difference of rounding grows with every step of training."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a run compares with the first.

    Attributes:
        arm: which run.
        must_be_equal: every bit must agree.
        rows_equal: the same rows with the same masks in every step.
        log_equal: every line of `metrics.jsonl` is the same.
        loss_difference: largest relative difference of a loss over the first steps that may differ.
        last_loss_difference: the same at the last step.
        weights_equal: weights and optimizer are the same, to the bit.
        weight_difference: |difference| / |weights|, L2 over all weights.
        first_difference: where it begins, in words; "" where nothing differs.
        holds: all is as it must be.
    """

    arm: str
    must_be_equal: bool
    rows_equal: bool
    log_equal: bool
    loss_difference: float
    last_loss_difference: float
    weights_equal: bool
    weight_difference: float
    first_difference: str
    holds: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--steps", type=int, default=20, metavar="K", help="train 2 K steps in each run (default 20)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="the other number of workers (default 2)"
    )


def run(options: argparse.Namespace) -> int:
    """Train, compare, report."""
    from seedbed.artifact import write_json
    from seedbed.commands.stages import prepare
    from seedbed.errors import ConfigError, IntegrityError, disk_errors
    from seedbed.lock import owned

    if options.steps < 2:
        raise ConfigError(f"--steps is {options.steps}; a run is cut in two.", hint="--steps 20")
    recipe, console = read_recipe(options), Console(as_json=options.json)
    run_folder = recipe.run_folder()
    folder = run_folder / "prove"
    with owned(run_folder):
        prepare(recipe, console, strict=options.strict, replace=options.replace)
        with disk_errors(folder, doing="writing"):
            folder.mkdir(exist_ok=True)
            _empty(folder)
        trainer = _Trainer(options, folder, run_folder)
        console.heading("prove")
        compared = _all_arms(
            trainer,
            options.steps,
            options.workers,
            console,
            is_exact=recipe.training.exact,
            is_sharded=recipe.runtime.sharding != "none",
        )
        result = {
            "steps": 2 * options.steps,
            "workers": options.workers,
            "exact": recipe.training.exact,
            "precision": trainer.machine()["precision"],
            "loss_tolerance": LOSS_TOLERANCE[trainer.machine()["precision"]],
            "arms": [asdict(c) for c in compared],
            "machine": trainer.machine(),
        }
        write_json(folder / "prove.json", result)
    console.table(
        [
            [
                c.arm,
                "same" if c.rows_equal else "DIFFER",
                "same bits"
                if c.log_equal
                else f"{c.loss_difference:.1e}, at the end {c.last_loss_difference:.1e}",
                "same bits" if c.weights_equal else f"{c.weight_difference:.1e}",
                "holds" if c.holds else "FAILS",
            ]
            for c in compared
        ],
        header=["run", "rows", "losses (relative)", "weights", ""],
    )
    failed = [c for c in compared if not c.holds]
    if failed:
        raise IntegrityError(
            f"{len(failed)} of {len(compared)} runs differ where they must not; {failed[0].arm}: {failed[0].first_difference}.",
            hint=f"{folder / 'prove.json'} has the figures; please report it with `seedbed env`",
        )
    console.result(
        result,
        text=f"proven over {2 * options.steps} steps: {', '.join(c.arm for c in compared)}\nfigures: {folder / 'prove.json'}",
    )
    return 0


class _Trainer:
    """Run `seedbed pretrain` in processes of its own, on the stages of the run."""

    def __init__(self, options: argparse.Namespace, folder: Path, run_folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.run_folder = run_folder
        self.micro_batch_rows = 0

    def arm(self, name: str) -> Path:
        """Make the folder of a run, with the stages linked."""
        arm = self.folder / name
        arm.mkdir()
        for stage in ("corpus", "tokenizer", "tokens"):
            (arm / stage).symlink_to((self.run_folder / stage).resolve(), target_is_directory=True)
        return arm

    def command(self, arm: Path, *words: str, workers: int = 1) -> list[str]:
        """Return the command that trains in it."""
        steps = 2 * self.options.steps
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
            if workers > 1
            else []
        )
        overrides = [
            *self.options.overrides,
            f"run={arm}",
            "training.budget_minutes=null",
            "training.budget_tokens=null",
            "training.max_minutes=null",
            f"training.budget_steps={steps}",
            f"training.checkpoint_steps={max(1, self.options.steps // 4)}",
            "training.record_rows=true",
        ]
        if self.micro_batch_rows:  # chosen once, from the memory that was free then
            overrides.append(f"training.micro_batch_rows={self.micro_batch_rows}")
        return [
            *(sys.executable, *launcher, "-m", "seedbed", "pretrain", str(self.options.recipe)),
            *overrides,
            *words,
            "--json",
        ]

    def train(self, arm: Path, *words: str, workers: int = 1) -> None:
        """Train, and fail as the command does."""
        done = subprocess.run(  # noqa: S603 - our own interpreter and package
            self.command(arm, *words, workers=workers), capture_output=True, text=True, check=False
        )
        if done.returncode:
            self._fail(arm, done.returncode, done.stderr)

    def kill(self, arm: Path, *, after_step: int) -> None:
        """Train, and kill the process once it has logged that step."""
        from seedbed.errors import SeedbedError

        with (arm / "killed.log").open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and package
                self.command(arm), stdout=subprocess.DEVNULL, stderr=errors
            )
            log = arm / "pretrain" / "metrics.jsonl"
            while process.poll() is None:
                if log.exists() and f'"window": {after_step},' in log.read_text(encoding="utf-8"):
                    process.send_signal(signal.SIGKILL)
                time.sleep(0.02)
        if process.returncode not in (0, -signal.SIGKILL):
            self._fail(arm, process.returncode, (arm / "killed.log").read_text(encoding="utf-8"))
        if process.returncode == 0:
            raise SeedbedError(
                f"{arm} was finished before it could be killed.", hint="more steps: --steps 100"
            )

    def machine(self) -> dict[str, Any]:
        """Return what the first run was trained on."""
        found: dict[str, Any] = json.loads(
            (self.folder / "whole" / "pretrain" / "machine.json").read_text(encoding="utf-8")
        )
        return found

    def _fail(self, arm: Path, code: int, said: str) -> None:
        from seedbed.errors import SeedbedError

        lines = [line for line in said.splitlines() if line.startswith(("error:", "hint:"))]
        error = SeedbedError(
            f"training in {arm} ended with exit code {code}: {' '.join(lines[:2]) or said[-500:]}",
            hint="does the recipe train by itself? seedbed pretrain shows it",
        )
        error.exit_code = code if 0 < code < 128 else 1
        raise error


def _all_arms(
    trainer: _Trainer, steps: int, workers: int, console: Console, *, is_exact: bool, is_sharded: bool
) -> list[Comparison]:
    """Train all runs, and compare each with the first as soon as it is done."""
    console.note(f"whole: {2 * steps} steps")
    whole = trainer.arm("whole")
    trainer.train(whole)
    plan = json.loads((whole / "pretrain" / "plan.json").read_text(encoding="utf-8"))
    trainer.micro_batch_rows = plan["micro_batch_rows"]
    tolerance = LOSS_TOLERANCE[trainer.machine()["precision"]]
    compared = []

    def compare(arm: Path, *, must_be_equal: bool, since: int = 0, other: Path = whole) -> None:
        compared.append(_compare(other, arm, must_be_equal=must_be_equal, tolerance=tolerance, since=since))

    console.note(f"stopped: {steps} steps, stopped, {steps} more")
    stopped = trainer.arm("stopped")
    trainer.train(stopped, "--stop-after", str(steps))
    trainer.train(stopped)
    compare(stopped, must_be_equal=True)

    console.note("killed: in the middle, by SIGKILL, and resumed")
    killed = trainer.arm("killed")
    trainer.kill(killed, after_step=steps)
    trainer.train(killed)
    compare(killed, must_be_equal=True)

    if workers > 1:
        console.note(f"workers-{workers}: {2 * steps} steps on {workers} workers")
        several = trainer.arm(f"workers-{workers}")
        trainer.train(several, workers=workers)
        compare(several, must_be_equal=is_exact)

        console.note(f"switched: {steps} steps on 1 worker, then {steps} on {workers}")
        switched = trainer.arm("switched")
        trainer.train(switched, "--stop-after", str(steps))
        trainer.train(switched, workers=workers)
        compare(switched, must_be_equal=is_exact, since=steps)

    if workers > 1 and is_sharded:
        console.note(f"shared: {steps} steps on {workers} workers that share weights, stopped, {steps} more")
        shared = trainer.arm("shared")
        trainer.train(shared, "--stop-after", str(steps), workers=workers)
        trainer.train(shared, workers=workers)
        compare(shared, must_be_equal=True, other=several)
    return compared


def _compare(whole: Path, arm: Path, *, must_be_equal: bool, tolerance: float, since: int) -> Comparison:
    """Compare a run with the first; where bits may differ, losses count from `since` on."""
    from seedbed.training.row_record import RowRecord

    rows, other_rows = RowRecord.read(whole / "pretrain"), RowRecord.read(arm / "pretrain")
    log, other_log = (_lines(path / "pretrain" / "metrics.jsonl") for path in (whole, arm))
    losses, other_losses = _losses(log), _losses(other_log)
    differences = {
        window: abs(other_losses.get(window, float("inf")) - loss) / max(abs(loss), 1e-12)
        for window, loss in losses.items()
    }
    tolerated = [d for window, d in differences.items() if since < window <= since + TOLERATED_STEPS]
    weight_difference, weights_equal = _weights(whole, arm)
    loss_difference = max(tolerated, default=float("inf"))
    holds = rows == other_rows and (
        log == other_log and weights_equal if must_be_equal else loss_difference <= tolerance
    )
    first = ""
    if rows != other_rows:
        window = next(w for w in sorted({*rows, *other_rows}) if rows.get(w) != other_rows.get(w))
        first = f"other rows in window {window}"
    elif log != other_log:
        number = next((n for n, (a, b) in enumerate(zip(log, other_log, strict=False)) if a != b), len(log))
        first = f"line {number + 1} of metrics.jsonl differs"
    elif not weights_equal:
        first = "the last checkpoints differ"
    return Comparison(
        arm=arm.name,
        must_be_equal=must_be_equal,
        rows_equal=rows == other_rows,
        log_equal=log == other_log,
        loss_difference=loss_difference,
        last_loss_difference=differences[max(differences)],
        weights_equal=weights_equal,
        weight_difference=weight_difference,
        first_difference=first,
        holds=holds,
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _losses(log: Sequence[str]) -> dict[int, float]:
    steps = [line for text in log if (line := json.loads(text))["kind"] == "step"]
    return {line["window"]: float(line["loss"]) for line in steps}


def _weights(whole: Path, arm: Path) -> tuple[float, bool]:
    """Return |difference| / |weights| of the last checkpoints, and whether weights and optimizer agree to the bit."""
    import torch

    from seedbed.artifact import open_verified
    from seedbed.tensors import load_tensors

    def newest(run: Path, name: str) -> Mapping[str, torch.Tensor]:
        path = sorted((run / "pretrain" / "checkpoints").glob("step-*"))[-1]
        return load_tensors(open_verified(path, stage="checkpoint").file(name))

    equal = True
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = newest(whole, name), newest(arm, name)
        equal &= one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    one, other = newest(whole, "model.safetensors"), newest(arm, "model.safetensors")
    apart = sum(float((one[key].double() - other[key].double()).square().sum()) for key in one)
    size = sum(float(value.double().square().sum()) for value in one.values())
    return (apart / size) ** 0.5, equal


def _empty(folder: Path) -> None:
    """Remove what an earlier proof left; links to stages are removed, not followed."""
    import shutil

    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
