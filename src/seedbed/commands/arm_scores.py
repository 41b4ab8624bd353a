"""Score a finished arm of a comparison: likelihood and its slices, minimal pairs, probes, fine-tunes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.compare.config import CompareConfig
from seedbed.config import validate
from seedbed.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from seedbed.api import LoadedModel
    from seedbed.commands.console import Console
    from seedbed.commands.stages import Prepared

__all__ = ["scores_of"]


def scores_of(
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
    except IncompatibleError as error:  # no head that could tell
        not_asked["minimal pairs"] = error.message
        return None
    told = report(scores)
    letters = {0.0: "0", 0.5: "h", 1.0: "1"}

    def row(values: Iterable[float], signs: Mapping[float, str], default: str) -> str:
        """Return a sign a pair, in the order of all pairs; those that were not scored have the default."""
        known = dict(zip(map(id, scores.pairs), values, strict=True))
        return "".join(signs[known[id(pair)]] if id(pair) in known else default for pair in pairs)

    return {
        "accuracy": told["accuracy"],
        "per_token": told["per_token"],
        "method": told["method"],
        "same": told["same"],
        "left_out": told["left_out"],
        "rejected_lines": num_rejected,
        "by_phenomenon": {name: group["accuracy"] for name, group in told["by"]["phenomenon"].items()},
        "by_paradigm": {name: group["accuracy"] for name, group in told["by"]["UID"].items()},
        "points": row(scores.points().tolist(), letters, "h"),
        "points_per_token": row(scores.points(per_token=True).tolist(), letters, "h"),
        "longer": row(scores.longer().tolist(), {-1: "-", 0: "=", 1: "+"}, "x"),
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
