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
from seedbed.config import validate
from seedbed.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from seedbed.api import LoadedModel
    from seedbed.commands.console import Console
    from seedbed.commands.stages import Prepared

__all__ = ["arm_folder", "recipe_of", "run_arm", "settings_digest"]

_SHARED = ("corpus", "tokenizer", "tokens", "start")
_PRODUCTS = 40


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


def run_arm(config: CompareConfig, arm: str, seed: int, console: Console) -> dict[str, Any]:
    """Train (or go on), judge, write `result.json`; returns it.

    Raises:
        Interrupted: a signal; the step was finished and saved.
    """
    from seedbed.api import load
    from seedbed.commands.pretraining import pretrain
    from seedbed.lock import owned

    recipe = recipe_of(config, arm, seed)
    run = recipe.run_folder()
    settings = settings_digest(config, arm, seed)
    path = run / "result.json"
    if path.exists() and (done := json.loads(path.read_text(encoding="utf-8")))["settings"] == settings:
        return dict(done)
    with owned(run):
        prepared = replace(_prepared(config, recipe, console), run=run)
        speeds = [_product_rate(recipe)]
        flops_per_token = _operations(recipe, prepared, run)
        if config.cost.flops is not None:
            tokens = max(1, round(config.cost.flops / flops_per_token))
            recipe = recipe.updated(training=recipe.training.updated(budget_tokens=tokens))
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
            "train_tokens": prepared.store.split("train").num_tokens,
            "train_seconds": summary["train_seconds"],
            "tokens_per_second": summary["tokens_per_second"],
            "step_seconds": _step_seconds(run),
            "flops": flops_per_token * summary["tokens"],
            "peak_memory_bytes": _peak_memory(),
            "filled_in": _filled_in(run),
            "valid": summary["valid"],
            "baselines": summary["baselines"],
            "curve": _curve(run, summary),
            "product_gflops": speeds,
            "machine": summary["machine"],
            **_judged(config, recipe, prepared, model, run, console),
        }
        result["judge_seconds"] = round(time.perf_counter() - began, 1)
        write_json(path, result)
    return result


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


def _judged(
    config: CompareConfig,
    recipe: Recipe,
    prepared: Prepared,
    model: LoadedModel,
    run: Path,
    console: Console,
) -> dict[str, Any]:
    """Return what a finished arm scores: likelihood, minimal pairs, probes, fine-tunes."""
    dtype = recipe.runtime.compute_dtype()
    with console.bars():
        found = _likelihood(config, recipe, prepared, model, dtype, console)
        not_asked: dict[str, str] = {}
        found["minimal_pairs"] = _minimal_pairs(config, model, console, not_asked)
        found["probes"], found["finetunes"] = _tasks(config, model, run, dtype, console, not_asked)
        found["not_asked"] = not_asked
    return found


def _likelihood(
    config: CompareConfig,
    recipe: Recipe,
    prepared: Prepared,
    model: LoadedModel,
    dtype: torch.dtype,
    console: Console,
) -> dict[str, Any]:
    """Score the validation text by the objective of the model's kind, if it has a likelihood."""
    from seedbed.commands.judging import head_and_trunk, text_objective
    from seedbed.corpus.pipeline import iter_documents
    from seedbed.evaluation.slices import TokenLosses, by_slice, count_tokens, vocabulary_slices
    from seedbed.evaluation.text import evaluate_texts
    from seedbed.objectives import Vocabulary

    none = {"kind": "none", "likelihood": None, "likelihood_unit": "", "text": None, "slices": None}
    if model.model.head is None or not model.model.config.stack or _has_no_likelihood(model):
        return none
    objective_config = text_objective(model)
    vocabulary = replace(
        Vocabulary.of(model.tokenizer),
        decoder_start_id=model.model.config.special_ids.get("decoder_start"),
    )
    objective = objective_config.build(
        vocabulary,
        row_length=recipe.data.row_length,
        is_segmented=recipe.data.is_segmented and model.model.config.stack != "encoder_decoder",
    )
    objective.check(model.model.config)
    by_token = TokenLosses(model.tokenizer.vocab_size)
    text = evaluate_texts(
        objective,
        head_and_trunk(model),
        (document.text for document in iter_documents(prepared.corpus, "validation")),
        model.tokenizer,
        max_bytes=int(config.judge.text_mib * 2**20) or None,
        max_pll_tokens=config.judge.pll_tokens if objective_config.name == "masked_lm" else 0,
        device=recipe.runtime.torch_device(),
        compute_dtype=dtype,
        by_token=by_token,
        progress=console.progress,
    )
    counts = count_tokens(prepared.store.split("train"), model.tokenizer.vocab_size)
    scores = text["scores"]
    kind = {"causal_lm": "causal", "masked_lm": "masked"}.get(objective_config.name, objective_config.name)
    per_byte = scores.get("bits_per_byte")
    # Losses at hidden tokens compare under one tokenizer only; per byte they always do.
    sample = text.get("pseudo_log_likelihood")
    if per_byte is not None:
        value, unit = per_byte, "bits per byte"
    elif _is_one_tokenizer(config) or not sample:
        value, unit = scores["loss"], "loss at hidden tokens, nats"
    else:
        value, unit = sample["bits_per_byte"], "pseudo-log-likelihood, bits per byte"
    return {
        "kind": kind,
        "likelihood": value,
        "likelihood_unit": unit,
        "text": {"scores": scores, "pll": sample},
        # Losses at a token, like those at hidden ones, compare under one tokenizer only.
        "slices": by_slice(by_token, vocabulary_slices(model.tokenizer, counts))
        if _is_one_tokenizer(config)
        else None,
    }


def _has_no_likelihood(model: LoadedModel) -> bool:
    """Say whether a model was trained by what gives no probability of a text: replaced tokens, contrasts."""
    return bool(model.objectives) and set(model.objectives) <= {"replaced_token", "contrastive"}


def _is_one_tokenizer(config: CompareConfig) -> bool:
    """Say whether all arms read the same tokens."""
    return not any({"tokenizer", "tokens", "corpus"} & set(own) for own in config.arms.values())


def _minimal_pairs(
    config: CompareConfig, model: LoadedModel, console: Console, not_asked: dict[str, str]
) -> dict[str, Any] | None:
    """Score pairs by the model's own way of telling them apart; None, with the reason noted, where it has none."""
    from seedbed.commands.judging import pair_method
    from seedbed.errors import IncompatibleError
    from seedbed.evaluation.english_pairs import ENGLISH, english_pairs
    from seedbed.evaluation.minimal_pairs import MinimalPair, choose_pairs, read_pairs, report, score_pairs

    pairs: list[MinimalPair] = []
    most = config.judge.pairs_per_paradigm
    named = [Path(name).expanduser() for name in config.judge.minimal_pairs]
    files = [path for path in named if path != ENGLISH]
    if ENGLISH in named:
        pairs += english_pairs(most or 50)
    num_rejected = 0
    if files:
        read, rejected = read_pairs(files)
        num_rejected = len(rejected)
        if rejected:
            file, line, reason = rejected[0]
            console.note(
                f"{num_rejected:,} lines of pairs left out; the first: {file}, line {line}: {reason}"
            )
        pairs += choose_pairs(read, most)
    if not pairs:
        return None
    try:
        scores = score_pairs(
            model.model,
            model.tokenizer,
            pairs,
            method=pair_method(model),
            is_shifted=model.is_shifted,
            progress=console.progress,
        )
    except IncompatibleError as error:  # an encoder-decoder, or no head that could tell
        not_asked["minimal pairs"] = error.message
        return None
    told = report(scores)
    points = dict(zip(map(id, scores.pairs), scores.points().tolist(), strict=True))
    letters = {0.0: "0", 0.5: "h", 1.0: "1"}
    return {
        "accuracy": told["accuracy"],
        "method": told["method"],
        "same": told["same"],
        "left_out": told["left_out"],
        "rejected_lines": num_rejected,
        "by_phenomenon": {name: group["accuracy"] for name, group in told["by"]["phenomenon"].items()},
        "by_paradigm": {name: group["accuracy"] for name, group in told["by"]["UID"].items()},
        "points": "".join(letters[points.get(id(pair), 0.5)] for pair in pairs),
    }


def _tasks(
    config: CompareConfig,
    model: LoadedModel,
    run: Path,
    dtype: torch.dtype,
    console: Console,
    not_asked: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Probe and fine-tune the tasks named."""
    from seedbed.errors import ConfigError, IncompatibleError
    from seedbed.evaluation.probes import probe
    from seedbed.finetune.classify import finetune
    from seedbed.finetune.config import FinetuneConfig
    from seedbed.tasks import TASKS, read_task

    probes: dict[str, Any] = {}
    finetunes: dict[str, Any] = {}
    folder = Path(config.judge.data).expanduser()
    for name in config.judge.tasks:
        if name not in TASKS:
            raise ConfigError(f"judge.tasks: there is no task {name!r}.", hint=f"known: {', '.join(TASKS)}")
        task = TASKS[name].inside(folder)
        metric = task.metric_names()[0]
        if config.judge.probes:
            most = config.judge.max_examples
            try:
                told = probe(
                    model.model,
                    model.tokenizer,
                    read_task(task),
                    max_train=most,
                    max_dev=most,
                    compute_dtype=dtype,
                )
            except IncompatibleError as error:  # an encoder-decoder has no vector of a text
                not_asked[f"{name}, probe"] = error.message
            else:
                probes[name] = {
                    "score": told.scores[metric],
                    "metric": metric,
                    "baseline": told.baseline[metric],
                    "examples": told.examples,
                }
        if config.judge.finetunes:
            section = validate(
                FinetuneConfig,
                {**config.judge.finetune, "task": task.model_dump(mode="json")},
                place="judge.finetune",
            )
            told_of = finetune(section, run / "model", run, progress=console.progress)
            finetunes[name] = {
                "score": told_of["scores"]["dev"][metric]["mean"],
                "metric": metric,
                "baseline": told_of["baselines"]["dev"].get(metric),
            }
    return probes, finetunes


def _filled_in(run: Path) -> dict[str, Any]:
    """Return what the arm's recipe left to the length of its run: two arms may differ in less than they seem to."""
    from seedbed.commands.settling import filled_in

    said = json.loads((run / "pretrain" / "resolved.json").read_text(encoding="utf-8"))
    return filled_in(said["requested"], said["resolved"])


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
