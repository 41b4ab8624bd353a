"""Train one arm of a comparison under one seed, judge it, and say everything it came to as JSON.

runs/compare/stores/<digest>/           corpus, tokenizer and tokens, shared by all arms that prepare them alike
runs/compare/arms/<arm>-<seed>-<digest> the arm's run; stopped, it goes on
    result.json                         what came of it
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.artifact import digest_of, write_json
from seedbed.compare.config import CompareConfig
from seedbed.compare.equal_minutes import measured_run
from seedbed.config import validate
from seedbed.recipe import Recipe

if TYPE_CHECKING:
    from seedbed.commands.console import Console
    from seedbed.commands.stages import Prepared

__all__ = ["arm_folder", "recipe_of", "run_arm", "settings_digest"]

_SHARED = ("corpus", "tokenizer", "tokens", "start")
_PRODUCTS = 400
"""A second or two of them: a machine that stood still for a tenth of a second was not slow for minutes."""


def recipe_of(config: CompareConfig, arm: str, seed: int) -> Recipe:
    """Return the recipe of an arm under a seed, checked.

    Raises:
        ConfigError: names the arm, and what is wrong with it.
    """
    sections = {**config.sections_of(arm, seed), "run": str(arm_folder(config, arm, seed))}
    return validate(Recipe, sections, place=f"arm {arm}")


def settings_digest(config: CompareConfig, arm: str, seed: int) -> str:
    """Return what a result depends on: the recipe, the cost, what it is judged by; not where, nor on which machine."""
    return digest_of(
        {
            "recipe": _training_settings(config, arm, seed),
            "cost": config.cost.model_dump(mode="json", exclude={"max_drift"}),
            "judge": config.judge.model_dump(mode="json", exclude={"by"}),
        }
    )[:12]


def arm_folder(config: CompareConfig, arm: str, seed: int) -> Path:
    """Return the run folder of an arm; other settings have another, so nothing is mixed up."""
    cost = config.cost.model_dump(mode="json", exclude={"max_drift"})
    digest = digest_of({"recipe": _training_settings(config, arm, seed), "cost": cost})[:8]
    return Path(config.out).expanduser() / "arms" / f"{arm}-{seed}-{digest}"


def _training_settings(config: CompareConfig, arm: str, seed: int) -> dict[str, Any]:
    sections = config.sections_of(arm, seed)
    return {key: value for key, value in sections.items() if key not in ("run", "runtime")}


def run_arm(
    config: CompareConfig,
    arm: str,
    seed: int,
    console: Console,
    others: Mapping[tuple[str, int], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train (or go on), judge, write `result.json`; returns it.

    Args:
        config: of the comparison.
        arm: of it.
        seed: of the run.
        console: told of progress.
        others: results that are there, by arm and seed: at equal minutes, seeds of an arm read what its first run measured.

    Raises:
        Interrupted: a signal; the step was finished and saved.
    """
    from seedbed.api import load
    from seedbed.commands.arm_scores import scores_of
    from seedbed.commands.pretraining import pretrain
    from seedbed.lock import owned

    recipe = recipe_of(config, arm, seed)
    run = recipe.run_folder()
    settings = settings_digest(config, arm, seed)
    path = run / "result.json"
    # Judged by other things before, it is trained already, and what its training took was measured then.
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if earlier.get("settings") == settings:
        return earlier
    with owned(run):
        prepared = replace(_prepared(config, recipe, console), run=run)
        speeds = [_product_rate(recipe)]
        flops_per_token = _operations(recipe, prepared, run)
        if config.cost.flops is not None:
            tokens = max(1, round(config.cost.flops / flops_per_token))
            recipe = recipe.updated(training=recipe.training.updated(budget_tokens=tokens))
        tokens_from = None
        if (known := _measured(config, arm, run, others or {})) is not None:
            tokens_from = known.pop("seed")
            console.note(
                f"{known['budget_tokens']:,} tokens, as seed {tokens_from} read in {config.cost.minutes:g} minutes"
            )
            recipe = recipe.updated(training=recipe.training.updated(budget_minutes=None, **known))
        summary = pretrain(recipe, prepared, console)
        speeds.append(_product_rate(recipe))
        console.heading(f"judge {arm}, seed {seed}")
        began = time.perf_counter()
        model = load(run / "model", device=recipe.runtime.torch_device())
        result = {
            "arm": arm,
            "seed": seed,
            "settings": settings,
            "objective": summary["objective"],
            "family": summary["family"],
            "parameters": summary["parameters"],
            "steps": summary["steps"],
            "tokens": summary["tokens"],
            "tokens_from": tokens_from,
            "validation_steps": _resolved(run)["resolved"]["training"]["validation_steps"],
            "train_tokens": prepared.store.split("train").num_tokens,
            "train_seconds": summary["train_seconds"],
            "tokens_per_second": summary["tokens_per_second"],
            "step_seconds": _step_seconds(run),
            "flops": flops_per_token * summary["tokens"],
            "peak_memory_bytes": earlier.get("peak_memory_bytes") or _peak_memory(),
            "filled_in": _filled_in(run),
            "valid": summary["valid"],
            "baselines": summary["baselines"],
            "curve": _curve(run, summary),
            "product_gflops": earlier.get("product_gflops") or speeds,
            "machine": summary["machine"],
            **scores_of(config, recipe, prepared, model, run, console),
        }
        result["judge_seconds"] = round(time.perf_counter() - began, 1)
        write_json(path, result)
    return result


def _measured(
    config: CompareConfig, arm: str, run: Path, others: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, int] | None:
    """Return what another seed's run measured, decided when this one begins; None: its own probe says it.

    The seed, and keys of `training`: what is read, and how often it is validated.
    """
    path = run / "measured.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    if (run / "pretrain").exists():  # it was begun by a probe, and goes on
        return None
    found = measured_run(config, others, arm)
    if found is None:
        return None
    told = {
        "seed": found["seed"],
        "budget_tokens": found["tokens"],
        "validation_steps": found.get("validation_steps", 0),
    }
    write_json(path, told)
    return told


def _prepared(config: CompareConfig, recipe: Recipe, console: Console) -> Prepared:
    """Prepare corpus, tokenizer and tokens, or take them as another arm made them, which may still be at it."""
    from seedbed.commands.stages import prepare
    from seedbed.errors import LockedError
    from seedbed.lock import owned

    sections = recipe.model_dump(mode="json", include=set(_SHARED))
    folder = Path(config.out).expanduser() / "stores" / digest_of(sections)[:12]
    shared = recipe.updated(run=str(folder))
    is_told = False
    while True:
        try:
            with owned(folder):
                return prepare(shared, console)
        except LockedError:
            if not is_told:
                console.note("waiting for another worker, which prepares the text")
                is_told = True
            time.sleep(1.0)


def _operations(recipe: Recipe, prepared: Prepared, run: Path) -> float:
    """Return the operations of matrix products for a token, forward and backward: counted in one step, as they are run.

    The same on every machine but for the form attention is computed in.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from seedbed.commands.assembly import assemble, feed_of, run_window
    from seedbed.commands.settling import asked_tokens, settle
    from seedbed.commands.start import open_old_text, open_start
    from seedbed.runtime import prepare_process
    from seedbed.training.budget import Plan

    path = run / "operations.json"
    if path.exists():
        return float(json.loads(path.read_text(encoding="utf-8"))["flops_per_token"])
    prepare_process(recipe.runtime)
    recipe = settle(recipe, tokens=asked_tokens(recipe), text_tokens=prepared.store.split("train").num_tokens)
    start = open_start(recipe, prepared.tokenizer)
    setting = assemble(recipe, prepared, start, open_old_text(recipe.start, start, prepared.tokenizer))
    try:
        rows = recipe.training.rows_per_step(recipe.data.row_length)
        micro = max(n for n in range(1, min(rows, 16) + 1) if rows % n == 0)
        setting.state.window = 500  # half way: scheduled rates are at their mean
        with FlopCounterMode(display=False) as counter:
            run_window(setting, setting.state, recipe, feed_of(setting, Plan(1000, rows, micro, 0.0, "")))
        flops = float(counter.get_total_flops()) / (rows * recipe.data.row_length)
    finally:
        setting.state.release()
    write_json(path, {"flops_per_token": flops})
    return flops


def _filled_in(run: Path) -> dict[str, Any]:
    """Return what the arm's recipe left to the length of its run: two arms may differ in less than they seem to."""
    from seedbed.commands.settling import filled_in

    said = _resolved(run)
    return filled_in(said["requested"], said["resolved"])


def _resolved(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "pretrain" / "resolved.json").read_text(encoding="utf-8")))


def _step_seconds(run: Path) -> float:
    """Return the median time of a step, the first ones left out: what validations and the start take has no part in it."""
    lines = (run / "pretrain" / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [float(r["seconds"]) for r in map(json.loads, lines) if r.get("kind") == "step"]
    return statistics.median(seconds[3:] or seconds)


def _curve(run: Path, summary: Mapping[str, Any]) -> list[list[float]]:
    """Return validation losses on the way, as [tokens, loss]."""
    per_step = summary["tokens"] / max(1, summary["steps"])
    points = []
    for line in (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.get("kind") == "validation" and math.isfinite(record.get("loss", math.nan)):
            points.append([round(record["window"] * per_step), round(record["loss"], 5)])
    return points


def _peak_memory() -> int:
    """Return the most memory this process ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _product_rate(recipe: Recipe) -> float:
    """Return GFLOP/s of a product, the median of many: how fast the machine is now."""
    import torch

    from seedbed.runtime import prepare_process

    prepare_process(recipe.runtime)
    device, dtype = recipe.runtime.torch_device(), recipe.runtime.compute_dtype()
    a, b = (torch.ones(1024, 512, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(_PRODUCTS):
        began = time.perf_counter()
        (a @ b.T).sum().item()
        seconds.append(time.perf_counter() - began)
    return round(2 * 1024 * 1024 * 512 / statistics.median(seconds) / 1e9, 1)
