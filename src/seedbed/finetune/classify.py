"""Fine-tune a pretrained model on labelled texts, with several seeds, and say what came of it beside the plainest answer.

runs/wiki/finetune/sst2/         append-only; belongs to the process that holds the run's lock
    request.json                 what was asked for; what a resume must equal
    seed-0/metrics.jsonl         one line a step and a score; the same bits in every run
    seed-0/checkpoints/          the newest states and the best weights
    seed-0/result.json           scores and predictions, once the seed is done
runs/wiki/finetune-sst2/         the artifact
    metrics.json                 every score of every seed, mean and spread, baselines, what was cut or left out
    predictions/seed-0-dev.jsonl
    model/                       the seed with the best dev score, a Hugging Face folder where the family has the class
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedbed.artifact import (
    Artifact,
    current_stage,
    file_digest,
    open_verified,
    publish_stage,
    read_sealed_json,
    verify_if_artifact,
    write_json,
    write_sealed_json,
)
from seedbed.data.examples import ExampleReader, ExampleView
from seedbed.data.views import RowReader
from seedbed.errors import IncompatibleError, IntegrityError, disk_errors
from seedbed.finetune.config import FinetuneConfig
from seedbed.hashing import at_device, fold, key_from
from seedbed.metrics import METRICS
from seedbed.models.classifier import Classifier, read_pretrained, write_classifier
from seedbed.models.language_model import LanguageModel
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.classification import Classification, ClassificationConfig
from seedbed.progress import Progress, silent
from seedbed.runtime import autocast
from seedbed.tasks import Example, TaskData, choose, read_task
from seedbed.tasks.formats import Split
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.hooks import CheckpointHook, Hook, MetricsLog, StepRecord, ValidationHook
from seedbed.training.loop import fit
from seedbed.training.loss_scale import LossScale
from seedbed.training.state import TrainingState
from seedbed.training.step import Learner, MicroBatch, StepResult, train_step

__all__ = ["FINETUNE_VERSION", "FinetuneStopped", "baselines", "finetune"]

FINETUNE_VERSION = 1
_FREE = {"runtime", "checkpoint_minutes", "seeds"}
"""Keys a resume may change: none alters what a seed gives."""

_ROWS = 64  # of one forward pass when scoring


class FinetuneStopped(Exception):  # noqa: N818 - it is no error
    """A signal stopped the run after a finished step; everything is saved."""

    def __init__(self, seed: int, window: int) -> None:
        super().__init__(seed, window)
        self.seed = seed
        self.window = window


@dataclass(frozen=True, slots=True)
class _Ground:
    """Hold what all seeds stand on."""

    config: FinetuneConfig
    data: TaskData
    model: LanguageModel
    hidden: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    inputs: dict[str, str]
    folder: Path


def finetune(
    config: FinetuneConfig,
    source: Path,
    run: Path,
    *,
    replace: bool = False,
    progress: Progress = silent,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Fine-tune a model with every seed, score dev and test, publish the best; or go on where it was stopped.

    Args:
        config: the task and how to learn it.
        source: the model folder: Hugging Face's form of a known family, or our own.
        run: the folder the result belongs to: it becomes `run/finetune-<task>/`.
        replace: start over where the folder holds another fine-tune of this task.
        progress: told of steps.
        is_interrupted: true once a signal has asked to stop.

    Returns:
        What `metrics.json` holds.

    Raises:
        DataError, TaskError: no model, or files that do not fit.
        FinetuneStopped: `is_interrupted` said so; the same call goes on.
        IntegrityError: the model was made by seedbed and changed since, or what the folder says of its run was.
        IncompatibleError: model, tokenizer and task do not fit, or the folder holds another fine-tune.
        NumericError: three non-finite gradients in a row.
    """
    verify_if_artifact(source)
    stage = f"finetune-{config.task.name}"
    inputs = {
        path.name: file_digest(path)
        for path in sorted(source.iterdir())
        if path.suffix in (".safetensors", ".json", ".txt") and path.name != "manifest.json"
    }
    inputs |= {
        f"{split}: {name}": file_digest(Path(name))
        for split in ("train", "dev", "test")
        for name in getattr(config.task, split)
        if Path(name).is_file()
    }
    settings = _settings(config) | {"seeds": config.seeds}
    may_replace = replace or _has_other_seeds_only(run / stage, settings, inputs)
    if done := current_stage(
        run, stage, version=FINETUNE_VERSION, config=settings, inputs=inputs, replace=may_replace
    ):
        return _metrics_of(done)
    ground = _prepare(config, source, run, inputs, replace=replace)

    # Each seed leaves its result; seeds already done are not done again.
    results = [
        _one_seed(ground, config.seed + number, progress, is_interrupted) for number in range(config.seeds)
    ]
    deciding = config.task.metric_names()[0]
    best = max(range(len(results)), key=lambda i: (results[i]["dev"][deciding], -results[i]["dev"]["loss"]))
    summary = _summary(ground, results, best)
    objective, learner = _learner(ground, config.seed + best)
    _checkpoints(ground, config.seed + best).load_best(learner.parts, window=results[best]["best_step"])
    modules = learner.modules_by_name()
    trained = LanguageModel(modules["trunk"], None)  # type: ignore[arg-type]
    trained.trunk.config = ground.model.config  # the dropout of this training is not the model's
    head: Any = modules["classifier"]
    with publish_stage(run, stage, version=FINETUNE_VERSION, config=settings, inputs=inputs) as draft:
        problem = write_classifier(
            Classifier(trained, head, objective.pooling, ground.data.labels), draft.path / "model"
        )
        ground.tokenizer.save(
            draft.path / "model",
            kind="decoder" if ground.model.config.is_causal else "encoder",
            max_length=ground.model.config.max_length,
            token_types=ground.model.config.type_vocab_size > 0,
        )
        summary["own_form_because"] = problem
        for result in results:
            for split in ("dev", "test"):
                if lines := result["predictions"].get(split):
                    path = draft.path / "predictions" / f"seed-{result['seed']}-{split}.jsonl"
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(
                        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
                        encoding="utf-8",
                    )
        write_json(draft.path / "metrics.json", summary)
        draft.counts = {"seeds": config.seeds, **summary["examples"]}
    # The best weights of each seed stay, so that more seeds can be added later.
    for old in ground.folder.glob("seed-*/checkpoints/step-*"):
        shutil.rmtree(old, ignore_errors=True)
    return summary


def _settings(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings a result depends on; what is switched off is left out, as if it did not exist."""
    left_out = set(_FREE)
    if config.regularisation.is_off:
        left_out.add("regularisation")
    if config.stochastic_depth is None:
        left_out.add("stochastic_depth")
    return config.model_dump(mode="json", exclude=left_out)


def baselines(data: TaskData, split: Split) -> dict[str, float]:
    """Return the scores of always answering the training examples' most frequent class, or their mean."""
    true = np.asarray(data.targets(split))
    if data.config.kind == "regression":
        constant: Any = np.full(len(true), float(np.mean(data.targets("train"))))
    else:
        counts = list(data.label_counts("train").values())
        constant = np.full(len(true), counts.index(max(counts)))
    return {name: METRICS[name].score(true, constant) for name in data.config.metric_names()}


def _prepare(
    config: FinetuneConfig, source: Path, run: Path, inputs: dict[str, str], *, replace: bool
) -> _Ground:
    """Read task and model; refuse what does not fit, or another fine-tune in the folder, before anything is trained."""
    data = read_task(config.task)
    data.splits["train"] = choose(data.splits["train"], config.max_train_examples)
    model, hidden = read_pretrained(source)
    tokenizer = Tokenizer.load(source)
    folder = run / "finetune" / config.task.name
    if replace and folder.exists():
        shutil.rmtree(folder)
    request = {"config": _settings(config), "inputs": inputs}
    with disk_errors(folder, doing="writing"):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "request.json"
        if not path.exists():
            write_sealed_json(path, request)
        elif read_sealed_json(path) != request:
            raise IncompatibleError(
                f"{folder} was started with other settings, another model or other files.",
                hint="--replace starts over; another task.name keeps both",
            )
    ground = _Ground(config, data, model, hidden, tokenizer, Vocabulary.of(tokenizer), inputs, folder)
    _learner(ground, config.seed)  # refuses what does not fit
    return ground


def _has_other_seeds_only(pointer: Path, settings: dict[str, Any], inputs: dict[str, str]) -> bool:
    """Say whether a finished fine-tune differs in the number of seeds alone: then more are added, or fewer reported."""
    try:
        manifest = open_verified(pointer).manifest
    except IntegrityError:
        return False
    return manifest["inputs"] == inputs and {**manifest["config"], "seeds": 0} == {**settings, "seeds": 0}


def _objective(ground: _Ground) -> Classification:
    config, model = ground.config, ground.model.config
    objective = Classification(
        ClassificationConfig(
            task=config.task,
            pooling=config.pooling,
            dropout=config.dropout,
            label_smoothing=config.label_smoothing,
        ),
        ground.vocabulary,
        row_length=min(config.max_length or model.max_length, model.max_length),
        is_segmented=False,
        data=ground.data,
    )
    objective.check(model)
    return objective


def _learner(ground: _Ground, seed: int) -> tuple[Classification, Learner]:
    """Return a seed's objective and its modules before the first step."""
    objective = _objective(ground)
    model = copy.deepcopy(ground.model)
    for name in ("hidden_dropout", "stochastic_depth"):
        if (rate := getattr(ground.config, name)) is not None:
            model.trunk.config = model.config.updated(**{name: rate})
    head: Any = model.head
    modules = objective.modules(model.trunk, head, seed=seed)
    if ground.hidden:
        classifier: Any = modules["classifier"]
        classifier.initialise(seed, head, ground.hidden)
    device = ground.config.runtime.torch_device()
    training = ground.config.regularisation.wrap(objective, model.trunk.config)
    return objective, Learner([training], modules).to(device)


def _one_seed(
    ground: _Ground,
    seed: int,
    progress: Progress,
    is_interrupted: Callable[[], bool],
) -> dict[str, Any]:
    """Train with one seed, or go on; returns its result."""
    config, data = ground.config, ground.data
    folder = ground.folder / f"seed-{seed}"
    if (folder / "result.json").exists():
        return read_sealed_json(folder / "result.json")
    objective, learner = _learner(ground, seed)
    training = learner.objectives[0]
    device, dtype = config.runtime.torch_device(), config.runtime.compute_dtype()
    optim = config.optimizer(ground.model.config.hidden_size)
    state = TrainingState(learner, optim.build(learner.parts.named_parameters()))
    state.loss_scale = LossScale(device) if dtype == torch.float16 else None
    view = objective.view_of(data.splits["train"], ground.tokenizer)
    reader = ExampleReader(view, name=objective.view, seed=seed, batch_rows=config.batch_rows)
    num_windows = max(1, math.ceil(config.epochs * view.num_rows / config.batch_rows))
    every = max(1, round(view.num_rows / config.batch_rows / config.evaluations_per_epoch))
    splits: list[Split] = ["dev", "test"] if data.splits["test"] else ["dev"]
    views = {split: objective.view_of(data.splits[split], ground.tokenizer) for split in splits}
    deciding = config.task.metric_names()[0]

    def evaluate(split: Split = "dev") -> dict[str, float]:
        return _score(objective, learner, views[split], data, split, device, dtype)[0]

    def run_window(state: TrainingState) -> StepResult:
        window = state.window
        first, micro_rows = window * config.batch_rows, config.micro_batch_rows or config.batch_rows
        micro_batches = []
        for start in range(first, first + config.batch_rows, micro_rows):
            rows, draws = reader.read(start, min(micro_rows, first + config.batch_rows - start))
            batch, targets = training.make_batch(rows, draws, progress=window / num_windows)
            micro_batches.append(MicroBatch(batch, targets, counts=training.counts(targets)).to(device))
        return train_step(
            state.learner,
            state.optimizer,
            micro_batches,
            objectives=[training],
            progress=window / num_windows,
            learning_rate=optim.rate(window, num_windows, state.history),
            settings=config.optim.settings(window, num_windows, state.history),
            max_grad_norm=optim.max_grad_norm,
            dropout_key=at_device(fold(key_from(seed, "dropout"), window), device),
            compute_dtype=dtype,
            loss_scale=state.loss_scale,
            perturbation=config.regularisation.perturbation(),
            embedding_width=ground.model.config.embedding_width,
        )

    checkpoints = _checkpoints(ground, seed)
    if (newest := checkpoints.newest()) is not None:
        checkpoints.load(state, newest)
        checkpoints.drop_after(state.window)
    log = MetricsLog(folder, window=state.window)
    hooks: list[Hook] = [
        log,
        _ProgressHook(progress, f"{config.task.name}, seed {seed}", num_windows),
        ValidationHook(
            evaluate,
            every=every,
            last_window=num_windows,
            log=log,
            checkpoints=checkpoints,
            patience=config.patience,
            better_when_lower=lambda scores: -scores[deciding],
        ),
        CheckpointHook(checkpoints, log=log, minutes=config.checkpoint_minutes, steps=0, extra=dict),
    ]
    outcome = fit(
        state,
        run_window,
        num_windows=num_windows,
        tokens_per_window=config.batch_rows * objective.row_length,
        learning_rate=lambda window: optim.rate(window, num_windows, state.history),
        hooks=hooks,
        is_interrupted=is_interrupted,
    )
    if outcome.reason == "interrupted":
        raise FinetuneStopped(seed, outcome.window)

    # The best weights by dev, scored once on everything.
    best_window = int(state.hooks["validation"]["best_window"])
    checkpoints.load_best(learner.parts, window=best_window)
    scored = {s: _score(objective, learner, views[s], data, s, device, dtype) for s in splits}
    result: dict[str, Any] = {
        "seed": seed,
        "steps": state.step,
        "best_step": best_window,
        "stopped_early": outcome.reason == "stopped",
        **{split: scores for split, (scores, _) in scored.items()},
        "predictions": {split: lines for split, (_, lines) in scored.items()},
        "cut": {
            split: {"examples": v.num_cut, "tokens": v.tokens_cut, "of_tokens": v.num_tokens}
            for split, v in {"train": view, **views}.items()
        },
    }
    write_sealed_json(folder / "result.json", result)
    return result


def _score(
    objective: Classification,
    learner: Learner,
    view: ExampleView,
    data: TaskData,
    split: Split,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return loss and metrics of a split, and one line for each example: where it stands, what is right, what was answered."""
    modules = learner.modules_by_name()
    order = np.argsort(view.lengths, kind="stable")
    reader = RowReader(view, name=objective.view, seed=0, shuffle=False)
    outputs = torch.zeros(view.num_rows, objective.num_outputs)
    for start in range(0, view.num_rows, _ROWS):
        chosen = order[start : start + _ROWS].astype(np.int64)
        batch, targets = objective.make_batch(*reader.read_at(chosen))
        on_device = {term: target.to(device) for term, target in targets.items()}
        with torch.no_grad(), autocast(device.type, dtype):
            outputs[torch.from_numpy(chosen)] = objective.outputs(modules, batch.to(device), on_device).cpu()
    true = np.asarray(data.targets(split))
    names = data.config.metric_names()
    if objective.is_regression:
        values = outputs[:, 0].double().numpy()
        loss = float(np.mean((values - true) ** 2))
        answers: list[dict[str, Any]] = [
            {"label": float(t), "predicted": float(v)} for t, v in zip(true, values, strict=True)
        ]
        scores = {name: METRICS[name].score(true, values) for name in names}
    else:
        logs = outputs.double().log_softmax(dim=1)
        guess = logs.argmax(dim=1).numpy()
        loss = float(-logs[torch.arange(len(true)), torch.from_numpy(true)].mean())
        answers = [
            {
                "label": data.labels[t],
                "predicted": data.labels[g],
                "probability": round(math.exp(float(logs[i, g])), 6),
            }
            for i, (t, g) in enumerate(zip(true.tolist(), guess.tolist(), strict=True))
        ]
        scores = {name: METRICS[name].score(true, guess) for name in names}
    examples: Sequence[Example] = data.splits[split]
    lines = [{"file": e.file, "line": e.line, **a} for e, a in zip(examples, answers, strict=True)]
    return {"loss": loss, **scores}, lines


def _summary(ground: _Ground, results: Sequence[dict[str, Any]], best: int) -> dict[str, Any]:
    """Gather what `metrics.json` holds."""
    data, config = ground.data, ground.config
    splits: list[Split] = ["dev", "test"] if data.splits["test"] else ["dev"]

    def spread(split: Split, name: str) -> dict[str, Any]:
        values = [float(result[split][name]) for result in results]
        sd = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "sd": sd, "values": values}

    names = [*config.task.metric_names(), "loss"]
    return {
        "task": config.task.name,
        "kind": config.task.kind,
        "labels": list(data.labels),
        "metric": names[0],
        "examples": {split: len(data.splits[split]) for split in ("train", *splits)},
        "label_counts": data.label_counts("train"),
        "rejected": {"lines": data.num_rejected, "first": [asdict(r) for r in data.rejected[:20]]},
        "cut": results[0]["cut"],
        "baselines": {split: baselines(data, split) for split in splits},
        "scores": {split: {name: spread(split, name) for name in names} for split in splits},
        "seeds": [
            {key: value for key, value in result.items() if key not in ("predictions", "cut")}
            for result in results
        ],
        "exported_seed": results[best]["seed"],
    }


def _checkpoints(ground: _Ground, seed: int) -> Checkpoints:
    folder = ground.folder / f"seed-{seed}" / "checkpoints"
    return Checkpoints(folder, inputs=ground.inputs, keep_weights=0)


def _metrics_of(artifact: Artifact) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(artifact.file("metrics.json").read_text(encoding="utf-8"))
    return metrics


class _ProgressHook(Hook):
    """Say how far a seed is."""

    name = "progress"

    def __init__(self, progress: Progress, phase: str, num_windows: int) -> None:
        self.progress = progress
        self.phase = phase
        self.total = num_windows

    def on_step(self, record: StepRecord, seconds: float) -> None:
        """Move the bar."""
        self.progress(self.phase, done=record.window, total=self.total, unit="steps")
