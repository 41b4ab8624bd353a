"""Write a run's report.html: curves beside the corpus's own floors, samples, what went in. Self-contained, works offline."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seedbed.commands.console import Console

_logger = logging.getLogger(__name__)

EXAMPLES = "example:\n  seedbed report runs/demo-en"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, help="the run folder; it may be unfinished")
    parser.add_argument("--json", action="store_true", help="print the path as JSON")


def run(options: argparse.Namespace) -> int:
    """Write the report of a run."""
    path = write_report(options.run)
    Console(as_json=options.json).result({"report": str(path)}, text=f"report: {path}")
    return 0


def write_report(run: Path) -> Path:
    """Gather what the run folder holds and write `report.html` into it; parts that are not there yet are left out.

    Raises:
        DataError: the folder is no run.
        IntegrityError: a file of it was changed.
    """
    from seedbed.artifact import open_verified, read_json, write_text
    from seedbed.errors import DataError, IntegrityError, disk_errors
    from seedbed.evaluation.report import RunReport, Sample, build_report

    if not (run / "corpus").exists():
        raise DataError(
            f"{run} is no run folder: it has no corpus.", hint="give the folder named by `run` in the recipe"
        )

    def read(path: Path) -> Any:
        return read_json(path) if path.exists() else {}

    def lines(path: Path) -> list[dict[str, Any]]:
        return list(_sound_lines(path)) if path.exists() else []

    corpus = open_verified(run / "corpus", stage="corpus").counts
    resolved = read(run / "pretrain" / "resolved.json").get("resolved", {})
    samples = read(run / "pretrain" / "samples.json")
    recipe = run / "recipe.yaml"
    summary = read(run / "summary.json")
    if not summary and (run / "validation").exists():  # unfinished: the floors are known all the same
        summary = {"baselines": read(run / "validation" / "baselines.json")}
    model = {key: value for key, value in resolved.get("model", {}).items() if value is not None}
    report = RunReport(
        name=run.name,
        language="zh" if corpus.get("han_fraction", 0.0) > 0.3 else "en",
        summary=summary,
        corpus=corpus,
        tokenizer=read(run / "tokenizer" / "report.json"),
        model=model,
        metrics=lines(run / "pretrain" / "metrics.jsonl"),
        timing=lines(run / "pretrain" / "timing.jsonl"),
        samples=[
            Sample(before["text"], _said(before), _said(after), before["answer"])
            for before, after in zip(samples.get("before", []), samples.get("after", []), strict=False)
        ],
        commands=[f"seedbed run {recipe}"] if recipe.exists() else [],
    )
    try:
        html = build_report(report)
    except (
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # JSON still, but another name or kind of value: a flipped bit
        raise IntegrityError(
            f"{run / 'pretrain'} has a damaged log: no report can be made of it ({error!r}).",
            hint="the model stands; look at metrics.jsonl and timing.jsonl, which have no hash",
        ) from error
    path = run / "report.html"
    with disk_errors(path, doing="writing"):
        write_text(path, html)
    return path


def _sound_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; one that a flipped bit made unreadable is left out, with a warning."""
    import json

    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError:
            _logger.warning("%s: line %d is damaged and left out", path, number)
            continue
        if isinstance(value, dict):
            yield value


def _said(sample: dict[str, Any]) -> Any:
    """Return what the model said: guesses for a mask, or the text it went on with."""
    if "continuation" in sample:
        return sample["continuation"]
    return [(candidate["token"], candidate["probability"]) for candidate in sample["candidates"]]
