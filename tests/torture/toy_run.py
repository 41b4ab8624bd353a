"""Make toy runs that take a second, and compare one that suffered with one that did not.

A run of two layers and width 32 with everything on that could make a resume inexact: packed documents in another order each
epoch, dropout, masks, several epochs, validations with the best weights kept, anchors, checkpoints every few steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tests.tiny_runs import write_sentences
from tests.torture.children import Child, fork, launch

STAGES = ("corpus", "tokenizer", "tokens")
MODELS = {"masked_lm": "modernbert", "causal_lm": "gpt2", "span_corruption": "t5"}
STEPS = 24


class Failure(AssertionError):
    """What a fault did that it must not."""


class Toy:
    """A recipe with its stages made once, and the run that nothing happened to.

    Args:
        scratch: where everything lies.
        objective: what is learned.
        mutant: (item, name) of what breaks every child.
        training: keys of the recipe's section.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        objective: str = "masked_lm",
        mutant: tuple[str, str] | None = None,
        **training: Any,
    ) -> None:
        self.objective = objective
        self.mutant = mutant
        self.training = training
        text = json.dumps([objective, training], sort_keys=True)
        name = f"{objective}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.folder = scratch / name
        self.scratch = scratch

    def recipe(self, run: Path) -> dict[str, Any]:
        """Return the recipe of a run in this folder."""
        return {
            "run": str(run),
            "corpus": {"inputs": [str(self.scratch / "text")], "validation_fraction": 0.2},
            "tokenizer": {"vocab_size": 300, "num_reserved": 32},
            "data": {"row_length": 16},
            "model": {
                "name": MODELS[self.objective],
                "num_layers": 1,
                "hidden_size": 32,
                "num_heads": 2,
                "ffn_size": 64,
                "hidden_dropout": 0.1,
            },
            "objective": {"name": self.objective},
            "training": {
                "budget_steps": STEPS,
                "batch_tokens": 128,
                "micro_batch_rows": 4,
                "validation_steps": 6,
                "validation_rows": 8,
                "checkpoint_steps": 3,
                "checkpoint_minutes": 1000.0,
                "keep_weights": 1,
                "record_rows": True,
                **self.training,
            },
            "runtime": {"threads": 1, "precision": "float32"},
        }

    def new_run(self, folder: Path, *, has_stages: bool = True) -> Path:
        """Make a run folder beside its recipe, its first three stages being links; return the folder of both."""
        folder.mkdir(parents=True)
        run = folder / "run"
        (folder / "recipe.yaml").write_text(yaml.safe_dump(self.recipe(run)), encoding="utf-8")
        if has_stages:
            run.mkdir()
            for stage in STAGES:
                (run / stage).symlink_to((self.stages() / stage).resolve(), target_is_directory=True)
        return folder

    def stages(self) -> Path:
        """Return a run that has the first three stages, made once."""
        folder = self.scratch / "stages"
        if not (folder / "run" / "tokens").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if not (self.scratch / "text").exists():
                write_sentences(self.scratch / "text", num_documents=8)
            made = Toy(self.scratch).new_run(folder, has_stages=False)
            _succeed(fork(["tokens", str(made / "recipe.yaml")], made / "said.txt"))
        return folder / "run"

    def reference(self) -> Path:
        """Return the run that nothing happened to, trained once, without the mutant."""
        whole = self.folder / "whole"
        if not (whole / "done").exists():
            shutil.rmtree(whole, ignore_errors=True)
            self.new_run(whole)
            _succeed(fork(["pretrain", str(whole / "recipe.yaml"), "--json"], whole / "said.txt"))
            (whole / "done").touch()
        return whole / "run"

    def start(
        self,
        folder: Path,
        *words: str,
        verb: str = "pretrain",
        fresh: bool = False,
        launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **conditions: Any,
    ) -> Child:
        """Start the command of a run's folder; `fresh`: in an interpreter of its own."""
        if self.mutant is not None:
            conditions["mutant"] = self.mutant
        words = (verb, str(folder / "recipe.yaml"), *words)
        if fresh:
            return launch(
                words,
                folder / "said.txt",
                conditions=conditions,
                environment=environment,
                launcher=launcher,
            )
        return fork(words, folder / "said.txt", conditions=conditions, environment=environment)

    def finish(self, folder: Path, *words: str, **options: Any) -> None:
        """Run the command to its end."""
        _succeed(self.start(folder, *words, **options))


def workers(number: int, port: int) -> list[dict[str, str]]:
    """Return what torchrun would put into the environment of each worker."""
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def free_port() -> int:
    """Return a port nobody listens on."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def compare(whole: Path, run: Path, *, same_checkpoints: bool = True) -> None:
    """Fail where a run differs from the one nothing happened to.

    Compared are the bytes of the log, of the list of rows, of the newest weights and moments, and of the model; what state the
    hooks keep; and which files there are. Times are not.
    """
    for name in ["metrics.jsonl", "plan.json", *_names(whole / "pretrain", "rows-*.jsonl")]:
        _same(whole / "pretrain" / name, run / "pretrain" / name)
    ours, theirs = newest(whole), newest(run)
    if ours.name != theirs.name:
        raise Failure(f"the newest checkpoint is {theirs.name}, not {ours.name}")
    for name in ("model.safetensors", "optimizer.safetensors"):
        _same(ours / name, theirs / name)
    states = [json.loads((path / "state.json").read_text(encoding="utf-8")) for path in (ours, theirs)]
    if _without_times(states[0]) != _without_times(states[1]):
        raise Failure("state.json differs")
    for path in (run / "model").glob("*"):
        _same(whole / "model" / path.name, path)
    patterns = [".", "pretrain", "model"] + (["pretrain/checkpoints"] if same_checkpoints else [])
    for pattern in patterns:
        names, expected = (_names(place / pattern, "*") for place in (run, whole))
        if names != expected:
            raise Failure(f"{pattern} holds {sorted(set(names) ^ set(expected))} too much or too little")
    left = [p for p in run.rglob("*.tmp") if not p.is_symlink()]
    if left:
        raise Failure(f"left over: {left[0]}")


def newest(run: Path) -> Path:
    """Return the newest full checkpoint by its name."""
    found = sorted((run / "pretrain" / "checkpoints").glob("step-*"))
    if not found:
        raise Failure("there is no checkpoint")
    return found[-1]


def last_window(run: Path) -> int:
    """Return the last step in the log, 0 where there is none."""
    path = run / "pretrain" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return max((int(line["window"]) for line in whole), default=0)


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`."""
    text = (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def each_row_once(run: Path) -> None:
    """Fail where an epoch has a row twice, or not at all. One worker: rows are written in the order they are read in."""
    rows: list[int] = []
    for path in sorted((run / "pretrain").glob("rows-*.jsonl")):
        rows += [json.loads(line)["row"] for line in path.read_text(encoding="utf-8").splitlines()]
    size = max(rows) + 1
    if len(rows) < 2 * size:
        raise Failure(f"{len(rows)} rows of {size} are not two epochs")
    for start in range(0, len(rows), size):
        epoch = rows[start : start + size]
        if len(set(epoch)) != len(epoch):
            raise Failure(f"epoch {start // size} reads a row twice")


def _succeed(child: Child) -> None:
    code = child.wait()
    if code:
        raise Failure(f"the command ended with exit code {code}: {child.output()[-1500:]}")


def _same(one: Path, other: Path) -> None:
    if not other.exists():
        raise Failure(f"{other} is missing")
    a, b = one.read_bytes(), other.read_bytes()
    if a != b:
        lines = zip(a.splitlines(), b.splitlines(), strict=False)
        number = next((n for n, (x, y) in enumerate(lines) if x != y), min(a.count(b"\n"), b.count(b"\n")))
        raise Failure(f"{other} differs from line {number + 1} on" if a.isascii() else f"{other} differs")


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(p.name for p in folder.glob(pattern))


def _without_times(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k != "train_seconds"}


def scratch_folder() -> Path:
    """Return a new folder in memory where there is such a file system, else in the usual place."""
    import tempfile

    shm = Path("/dev/shm")
    return Path(
        tempfile.mkdtemp(
            prefix="seedbed-torture-", dir=shm if shm.is_dir() and os.access(shm, os.W_OK) else None
        )
    )
