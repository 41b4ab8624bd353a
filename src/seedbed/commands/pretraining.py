"""Assemble a pretraining run: model, objective, rows, plan, hooks, loop, and the model it ends in.

runs/wiki/pretrain/            append-only; belongs to the process that holds the run's lock
    resolved.json              what was asked for, and the same with everything decided; what a resume must equal
    start.json                 where weights came from another model: what was taken, changed, new, left out
    plan.json                  steps and micro-batch, decided once
    machine.json               torch, threads, precision; a resume on another machine warns
    metrics.jsonl timing.jsonl one line a step; the same bits in every run of the recipe, and the times
    checkpoints/
runs/wiki/model/               the model folder it ends in (an artifact), in Hugging Face's form where the family has it
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as _replaced
from pathlib import Path
from typing import Any

import torch

from seedbed.artifact import Artifact, current_stage, digest_of, open_verified, publish_stage, write_json
from seedbed.commands.console import Console, duration, quantity
from seedbed.commands.samples import take_samples
from seedbed.commands.signals import collect_signals as _signals
from seedbed.commands.stages import Prepared
from seedbed.commands.start import OldText, Start, open_old_text, open_start
from seedbed.config import commented_yaml, validate
from seedbed.data.store import TokenStore
from seedbed.data.views import RowReader, RowSource
from seedbed.errors import IncompatibleError, disk_errors
from seedbed.evaluation.fixed_targets import build_validation
from seedbed.evaluation.intrinsic import EvaluationSet, score
from seedbed.hashing import fold, key_from
from seedbed.models.folder import settle_form, write_model
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.combination import entries_of
from seedbed.objectives.mixture import MixtureConfig
from seedbed.recipe import Recipe
from seedbed.runtime import describe_machine, prepare_process
from seedbed.training.averaging import WeightAverage, adopt_evaluation_weights
from seedbed.training.budget import Plan, fit_micro_batch, plan_steps, time_steps
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.continued import OLD, ForgettingHook, gained_and_forgotten
from seedbed.training.feed import Entry, Feed
from seedbed.training.hooks import (
    CheckpointHook,
    Hook,
    MetricsLog,
    StepRecord,
    TensorBoardHook,
    ValidationHook,
)
from seedbed.training.loop import fit
from seedbed.training.state import TrainingState
from seedbed.training.step import Learner, MicroBatch, StepResult, train_step

__all__ = ["FREE_KEYS", "MODEL_VERSION", "Interrupted", "pretrain", "steps_from_start"]

MODEL_VERSION = 1
FREE_KEYS = ("checkpoint_minutes", "checkpoint_steps", "keep_weights", "tensorboard")
"""Keys of `training` that change no result, so that a resume may change them."""

_logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal stopped the run after a finished step; everything is saved."""

    def __init__(self, signal_number: int, window: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.window = window


@dataclass(slots=True)
class _Setting:
    """Hold what a run is made of, before its first step.

    `entries` learn from the run's text, `replay` from the text of a run before it.
    """

    entries: list[Entry]
    model: LanguageModel
    state: TrainingState
    device: torch.device
    compute_dtype: torch.dtype
    start: Start | None = None
    old: OldText | None = None
    replay: Entry | None = None

    @property
    def fed(self) -> list[Entry]:
        """Return everything that gives rows."""
        return self.entries if self.replay is None else [*self.entries, self.replay]


def pretrain(
    recipe: Recipe, prepared: Prepared, console: Console, *, replace: bool = False
) -> dict[str, Any]:
    """Train, or go on training, and export; returns the run's summary.

    Raises:
        IncompatibleError: the folder holds a run of another recipe, or objective, model and tokenizer do not fit.
        Interrupted: SIGINT or SIGTERM asked to stop; the step was finished and saved.
        NumericError: three non-finite gradients in a row.
    """
    console.heading("pretrain")
    prepare_process(recipe.runtime)
    folder = prepared.run / "pretrain"
    if replace and folder.exists():
        shutil.rmtree(folder)
    start = open_start(recipe, prepared.tokenizer)
    old = open_old_text(recipe.start, start, prepared.tokenizer)
    requested = _requested(recipe, start)
    resolved = _resume_request(folder, requested)
    inputs = {"tokens": prepared.tokens.digest, "tokenizer": prepared.tokenizer.digest}
    if start is not None:
        inputs["start"] = start.digest
    if old is not None:
        inputs["old tokens"] = old.tokens.digest
    if resolved is not None and (
        done := current_stage(
            prepared.run, "model", version=MODEL_VERSION, config=resolved, inputs=inputs, replace=replace
        )
    ):
        console.note(f"up to date: {prepared.run / 'model'}")
        return _read_summary(prepared.run, done)

    setting = _assemble(recipe, prepared, start, old)
    evaluate, baselines = _validation(recipe, prepared, setting, replace=replace)

    # Plan once; a resumed run follows the plan it was started with.
    if resolved is None:
        plan = _decide(recipe, setting, evaluate)
        resolved = _resolve(requested, plan)
        with disk_errors(folder, doing="writing"):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "plan.json", asdict(plan))
            write_json(folder / "machine.json", describe_machine(recipe.runtime))
            write_json(folder / "resolved.json", {"requested": requested, "resolved": resolved})
            if start is not None:
                write_json(folder / "start.json", start.report)
            (prepared.run / "recipe.yaml").write_text(_resolved_recipe(recipe, resolved), encoding="utf-8")
    else:
        plan = Plan(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))
    _describe(console, setting, recipe, plan, baselines)

    if recipe.training.ema_decay:
        setting.state.average = WeightAverage(
            recipe.training.ema_decay,
            start=round(recipe.training.ema_start_fraction * plan.num_windows),
            every=recipe.training.ema_steps,
        )

    # Resume, or take samples of the untrained model.
    checkpoints = Checkpoints(
        folder / "checkpoints", inputs=inputs, keep_weights=recipe.training.keep_weights
    )
    newest = checkpoints.newest()
    seconds_before = 0.0
    if newest is not None:
        seconds_before = float(checkpoints.load(setting.state, newest).get("train_seconds", 0.0))
        checkpoints.drop_after(setting.state.window)
        _warn_of_changes(folder, recipe)
        console.note(f"resuming after step {setting.state.window:,} of {plan.num_windows:,}")
    else:
        checkpoints.drop_after(-1)  # of a run that was killed before its first checkpoint
    samples_path = folder / "samples.json"
    if not samples_path.exists():
        write_json(samples_path, {"before": _samples(setting, prepared)})

    # Train.
    began = time.monotonic()
    progress = _ProgressHook(console, plan, recipe.data.row_length)

    def trained() -> dict[str, float]:
        return {"train_seconds": round(seconds_before + time.monotonic() - began, 3)}

    # Without a checkpoint every line will be written again, that of the start (window 0) too.
    log = MetricsLog(folder, window=setting.state.window if newest is not None else -1)
    board = TensorBoardHook(folder / "tensorboard") if recipe.training.tensorboard else None
    hooks: list[Hook] = [log, progress]
    if board is not None:
        hooks.append(board)

    every = recipe.training.validation_steps or max(1, plan.num_windows // 20)
    forgetting = ForgettingHook(
        every=every, last_window=plan.num_windows, max_forgetting=recipe.start.max_forgetting
    )

    def on_validation(window: int, scores: Mapping[str, float]) -> None:
        progress.validation(window, scores)
        forgetting.hear(window, scores)
        if board is not None:
            board.validation(window, scores)

    validation = ValidationHook(
        evaluate,
        every=every,
        last_window=plan.num_windows,
        log=log,
        checkpoints=checkpoints,
        keeps_best=recipe.training.keep_best,
        num_averaged=recipe.training.average_checkpoints,
        patience=recipe.training.early_stopping_patience,
        on_result=on_validation,
        is_allowed=lambda scores: forgetting.allows(setting.state, scores),
    )
    if start is not None and newest is None:
        # What the start itself scores: the first best, and what gains and forgetting are measured from.
        for hook in (validation, forgetting):
            hook.act(setting.state)
    hooks += [
        validation,
        *([forgetting] if start is not None else []),
        CheckpointHook(
            checkpoints,
            log=log,
            minutes=recipe.training.checkpoint_minutes,
            steps=recipe.training.checkpoint_steps,
            extra=trained,
        ),
    ]
    feed = _feed(setting, plan)
    with _signals() as received, console.bars():
        outcome = fit(
            setting.state,
            lambda state: _run_window(setting, state, recipe, feed),
            num_windows=plan.num_windows,
            tokens_per_window=plan.rows_per_step * recipe.data.row_length,
            learning_rate=lambda window: recipe.optim.rate(window, plan.num_windows, setting.state.history),
            hooks=hooks,
            is_interrupted=lambda: bool(received),
            labels=[entry.label for entry in setting.fed],
        )
    if outcome.reason == "interrupted":
        raise Interrupted(received[0], outcome.window)

    # Export the best weights, or means of several, and say what came of it.
    train_seconds = trained()["train_seconds"]
    memory = setting.state.hooks.get("validation", {})
    if recipe.training.average_checkpoints:
        checkpoints.load_mean(setting.state.learner.parts)
    elif recipe.training.keep_best and memory.get("best_window") not in (None, outcome.window):
        checkpoints.load_best(setting.state.learner.parts, window=memory["best_window"])
    else:
        adopt_evaluation_weights(setting.state)
    scores = evaluate()
    after = _samples(setting, prepared)
    write_json(samples_path, {**json.loads(samples_path.read_text(encoding="utf-8")), "after": after})
    tokens = outcome.window * plan.rows_per_step * recipe.data.row_length
    summary = {
        "objective": recipe.objective.name,
        "family": recipe.model.name if start is None else start.report["family"],
        "parameters": sum(p.numel() for p in setting.state.parameters().values()),
        "valid_loss": scores["loss"],
        "valid": scores,
        "baselines": baselines,
        "steps": setting.state.step,
        "tokens": tokens,
        "train_seconds": round(train_seconds, 2),
        "tokens_per_second": round(tokens / max(train_seconds, 1e-9), 1),
        "stopped_early": outcome.reason == "stopped",
        "note": plan.note,
        "model": str(prepared.run / "model"),
        "model_form": settle_form(setting.model.config, recipe.training.model_form),
        "machine": describe_machine(recipe.runtime),
    }
    if start is not None:
        summary["start"] = start.report
        summary["continued"] = gained_and_forgotten(
            setting.state.hooks["continued"]["before"],
            scores,
            max_forgetting=recipe.start.max_forgetting,
            keeps_validation=old is not None and old.has_validation_of(prepared.tokens),
            stopped_because=_stop_reason(setting.state, recipe) if outcome.reason == "stopped" else "",
        )
    with publish_stage(prepared.run, "model", version=MODEL_VERSION, config=resolved, inputs=inputs) as draft:
        modules = setting.state.learner.modules_by_name()
        exported = setting.entries[0].objective.exported(setting.model, modules)
        write_model(
            exported,
            draft.path,
            form=settle_form(exported.config, recipe.training.model_form),
            objectives=sorted({entry.objective.config.name for entry in setting.entries}),
        )
        prepared.tokenizer.save(
            draft.path,
            kind=setting.model.config.stack,
            max_length=setting.model.config.max_length,
            token_types=setting.model.config.type_vocab_size > 1,
        )
        draft.counts = {
            "parameters": summary["parameters"],
            "steps": summary["steps"],
            "valid_loss": scores["loss"],
        }
    with disk_errors(prepared.run, doing="writing"):
        write_json(prepared.run / "summary.json", summary)
    return summary


def _stop_reason(state: TrainingState, recipe: Recipe) -> str:
    """Say which hook stopped a run."""
    said = str(state.hooks.get("continued", {}).get("stop", ""))
    patience = recipe.training.early_stopping_patience
    return said or f"no better loss in {patience} validations (training.early_stopping_patience)"


def _assemble(
    recipe: Recipe, prepared: Prepared, start: Start | None = None, old: OldText | None = None
) -> _Setting:
    """Build objective, model, optimizer and rows; refuse what does not fit before anything runs."""
    vocabulary = Vocabulary.of(prepared.tokenizer)
    sections = entries_of(recipe.objective)
    description = (
        recipe.model.build(vocab_size=prepared.tokenizer.vocab_size, special_ids=vocabulary.role_ids())
        if start is None
        else start.model.config
    )
    vocabulary = _replaced(vocabulary, decoder_start_id=description.special_ids.get("decoder_start"))
    objectives = [
        section.objective.build(
            vocabulary, row_length=recipe.data.row_length, is_segmented=recipe.data.is_segmented
        )
        for section in sections
    ]
    for objective in objectives:
        objective.check(description)
    objectives = [recipe.regularisation.wrap(objective, description) for objective in objectives]
    settle_form(
        description, recipe.training.model_form
    )  # refuse now what could not be exported when it is trained
    device = recipe.runtime.torch_device()
    model = build_model(description, seed=recipe.training.seed) if start is None else start.model
    model = model.to(device)
    assert model.head is not None
    seed = recipe.training.seed
    modules = [objective.modules(model.trunk, model.head, seed=seed) for objective in objectives]
    if start is not None:
        start.adopt(modules)
    has_replay = old is not None and recipe.start.replay.share > 0
    learner = Learner(
        [*objectives, *objectives[:1]] if has_replay else objectives,
        [*modules, *modules[:1]] if has_replay else modules,
    ).to(device)
    state = TrainingState(learner, recipe.optim.build(learner.parts.named_parameters()))
    if start is not None:
        start.take_on(state)

    def source_of(store: TokenStore) -> RowSource:
        return RowSource(
            store.split("train"),
            split="train",
            document_order_key=seed if recipe.data.reorder_documents else None,
            tokenizer=prepared.tokenizer,
            seed=seed,
        )

    source = source_of(prepared.store)
    entries = []
    for number, (section, objective) in enumerate(zip(sections, objectives, strict=True)):
        # Entries of the same view draw apart: the view's name and the entry's number are the key.
        name = f"{objective.view}:{number}" if number else objective.view
        reader = RowReader(objective.make_view(source), name=name, seed=seed)
        scale = 1.0
        if isinstance(recipe.objective, MixtureConfig) and recipe.objective.size_temperature:
            scale = reader.num_rows ** (1 / recipe.objective.size_temperature)
        end = section.weight if section.final_weight is None else section.final_weight
        entries.append(Entry(section.label, objective, reader, scale * section.weight, scale * end))
    replay = None
    if old is not None and has_replay:
        share = recipe.start.replay.share / (1 - recipe.start.replay.share)
        name = f"{objectives[0].view}:replay"
        reader = RowReader(objectives[0].make_view(source_of(old.store)), name=name, seed=seed)
        starts, ends = sum(entry.start for entry in entries), sum(entry.end for entry in entries)
        replay = Entry("replay", objectives[0], reader, share * starts, share * ends)
    return _Setting(entries, model, state, device, recipe.runtime.compute_dtype(), start, old, replay)


def _validation(
    recipe: Recipe, prepared: Prepared, setting: _Setting, *, replace: bool
) -> tuple[Callable[[], dict[str, float]], dict[str, float]]:
    """Return what scores the model at the stored targets of every entry, and the losses without a model.

    With several entries names are prefixed `<label>.`, and `loss` is the sum by the entries' shares at the end of the run.
    Where there is old text its scores, with the first entry's objective, are added as `old.<name>`.
    """
    train = prepared.store.split("train")
    source = RowSource(prepared.store.split("validation"), split="validation", tokenizer=prepared.tokenizer)
    stored = [
        build_validation(
            prepared.run,
            prepared.tokens,
            entry.objective,
            entry.objective.for_evaluation().make_view(source),
            train,
            max_rows=recipe.training.validation_rows,
            replace=replace,
            stage=f"validation-{number}" if number else "validation",
        )
        for number, entry in enumerate(setting.entries)
    ]
    old_stored = _old_validation(recipe, prepared, setting, replace=replace)
    total = sum(entry.end for entry in setting.entries)
    shares = [entry.end / total for entry in setting.entries]

    def together(each: Sequence[Mapping[str, float]], bare: Collection[str]) -> dict[str, float]:
        if len(each) == 1:
            return dict(each[0])
        labelled = {
            f"{entry.label}.{name}": value
            for entry, found in zip(setting.entries, each, strict=True)
            for name, value in found.items()
        }
        sums = {
            name: sum(share * found[name] for share, found in zip(shares, each, strict=True))
            for name in bare
            if all(name in found for found in each)
        }
        return sums | labelled

    def evaluate() -> dict[str, float]:
        scores = [
            score(
                entry.objective,
                setting.state.learner.modules_by_name(number),
                stored[number][0],
                device=setting.device,
                compute_dtype=setting.compute_dtype,
            )
            for number, entry in enumerate(setting.entries)
        ]
        found = together(scores, ["loss"])
        if setting.old is not None and old_stored is None:  # the same targets
            found |= {f"{OLD}{name}": value for name, value in scores[0].items()}
        if old_stored is not None:
            old = score(
                setting.entries[0].objective,
                setting.state.learner.modules_by_name(0),
                old_stored,
                device=setting.device,
                compute_dtype=setting.compute_dtype,
            )
            found |= {f"{OLD}{name}": value for name, value in old.items()}
        return found

    return evaluate, together(
        [baselines for _, baselines in stored], ["uniform", "unigram", "bigram", "chance"]
    )


def _old_validation(
    recipe: Recipe, prepared: Prepared, setting: _Setting, *, replace: bool
) -> EvaluationSet | None:
    """Return the stored targets of the old text's validation split; its own run's, where that validated in the same way.

    None where there is no old text, or where its validation split is the run's own (an appended corpus).
    """
    if setting.old is None or setting.old.has_validation_of(prepared.tokens):
        return None
    section = entries_of(recipe.objective)[0].objective
    vocabulary = Vocabulary.of(setting.old.tokenizer)  # as the old run's, should this run's have grown
    vocabulary = _replaced(
        vocabulary, decoder_start_id=setting.entries[0].objective.vocabulary.decoder_start_id
    )
    objective = section.build(
        vocabulary, row_length=recipe.data.row_length, is_segmented=recipe.data.is_segmented
    )
    store = setting.old.store
    source = RowSource(store.split("validation"), split="validation", tokenizer=setting.old.tokenizer)
    stored, _ = build_validation(
        prepared.run,
        setting.old.tokens,
        objective,
        objective.for_evaluation().make_view(source),
        store.split("train"),
        max_rows=recipe.training.validation_rows,
        replace=replace,
        stage="validation-old",
    )
    return stored


def _samples(setting: _Setting, prepared: Prepared) -> list[dict[str, Any]]:
    """Return samples of the model, where an objective trains a head that speaks."""
    if all(entry.objective.speaks == "nothing" for entry in setting.entries):
        return []
    return take_samples(setting.model, prepared.tokenizer, prepared.store, device=setting.device)


def _feed(setting: _Setting, plan: Plan) -> Feed:
    return Feed(
        setting.fed,
        rows_per_step=plan.rows_per_step,
        num_windows=plan.num_windows,
        micro_batch_rows=plan.micro_batch_rows,
    )


def steps_from_start(recipe: Recipe, prepared: Prepared, num_steps: int) -> Callable[[float], StepResult]:
    """Return what does the next step of a run of `num_steps` at a given rate, from the initial weights; writes nothing."""
    prepare_process(recipe.runtime)
    start = open_start(recipe, prepared.tokenizer)
    setting = _assemble(recipe, prepared, start, open_old_text(recipe.start, start, prepared.tokenizer))
    rows = recipe.training.rows_per_step(recipe.data.row_length)
    feed = _feed(setting, Plan(num_steps, rows, min(_micro_batch_rows(recipe, setting), rows), 0.0, ""))

    def step(rate: float) -> StepResult:
        result = _run_window(setting, setting.state, recipe, feed, rate=rate)
        setting.state.window += 1
        return result

    return step


def _run_window(
    setting: _Setting, state: TrainingState, recipe: Recipe, feed: Feed, *, rate: float | None = None
) -> StepResult:
    """Do the step of `state.window`: everything about it follows from that number (but for a `rate` that is given)."""
    window, history = state.window, state.history
    result = train_step(
        state.learner,
        state.optimizer,
        feed.micro_batches(window, device=setting.device),
        objectives=[entry.objective for entry in setting.fed],
        progress=window / max(1, feed.num_windows),
        learning_rate=recipe.optim.rate(window, feed.num_windows, history) if rate is None else rate,
        settings=recipe.optim.settings(window, feed.num_windows, history),
        max_grad_norm=recipe.optim.max_grad_norm,
        dropout_key=fold(key_from(recipe.training.seed, "dropout"), window).to(setting.device),
        compute_dtype=setting.compute_dtype,
        perturbation=recipe.regularisation.perturbation(),
        embedding_width=setting.model.config.embedding_width,
    )
    if state.average is not None:
        state.average.update(state.parameters(), window, result.is_finite)
    return result


def _micro_batch_rows(recipe: Recipe, setting: _Setting) -> int:
    """Return the rows of a forward pass: as asked for, or as many as fit the memory."""

    def fitting(number: int, entry: Entry) -> int:
        def sample(count: int) -> MicroBatch:
            batch, targets = entry.objective.make_batch(*entry.reader.read(0, count), progress=0.0)
            on_device = {term: target.to(setting.device) for term, target in targets.items()}
            return MicroBatch(batch.to(setting.device), on_device, entry=number)

        return fit_micro_batch(
            setting.state.learner,
            sample,
            rows_per_step=recipe.training.rows_per_step(recipe.data.row_length),
            memory_bytes=recipe.runtime.memory_bytes(),
            compute_dtype=setting.compute_dtype,
            group_rows=entry.objective.group_rows,
        )

    return recipe.training.micro_batch_rows or min(fitting(*item) for item in enumerate(setting.fed))


def _decide(recipe: Recipe, setting: _Setting, evaluate: Callable[[], object]) -> Plan:
    """Choose the micro-batch from the memory limit, and the steps from the budget."""
    training = recipe.training
    rows = training.rows_per_step(recipe.data.row_length)
    probe = Plan(1000, rows, min(_micro_batch_rows(recipe, setting), rows), 0.0, "")
    feed = _feed(setting, probe)

    def step(state: TrainingState, window: int) -> None:
        state.window = 500 + window  # half way: scheduled rates are at their mean
        _run_window(setting, state, recipe, feed)

    def measure() -> tuple[float, float]:
        step_seconds = time_steps(step, setting.state)
        began = time.perf_counter()
        evaluate()
        return step_seconds, time.perf_counter() - began

    return plan_steps(
        training, row_length=recipe.data.row_length, micro_batch_rows=probe.micro_batch_rows, measure=measure
    )


def _requested(recipe: Recipe, start: Start | None) -> dict[str, Any]:
    """Return the sections a model depends on, without the keys that change nothing.

    Where there is a start, its content stands in them, and its family for the model's description.
    """
    values = recipe.model_dump(mode="json", include={"data", "model", "objective", "optim", "training"})
    for key in FREE_KEYS:
        values["training"].pop(key)
    if not recipe.regularisation.is_off:
        values["regularisation"] = recipe.regularisation.model_dump(mode="json")
    if start is not None:
        values["model"] = start.model_section
        values["start"] = recipe.start.model_dump(mode="json") | {"digest": start.digest}
    return values


def _resolve(requested: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the request with the plan's decisions in place of budgets."""
    training = {
        **requested["training"],
        "budget_minutes": None,
        "budget_tokens": None,
        "budget_steps": plan.num_windows,
        "max_minutes": None,
        "micro_batch_rows": plan.micro_batch_rows,
    }
    return {**requested, "training": training}


def _resolved_recipe(recipe: Recipe, resolved: Mapping[str, Any]) -> str:
    """Return the whole recipe with everything decided, commented; running it anywhere repeats the run bit for bit."""
    data = recipe.model_dump(mode="json")
    training = {**data["training"], **resolved["training"]}
    whole = validate(Recipe, {**data, **resolved, "training": training}, place="the resolved recipe")
    heading = (
        "# The recipe of this run with every choice made. Running it in another folder repeats the run.\n"
    )
    if recipe.start.path is None:
        return heading + commented_yaml(whole)
    # The start brings the description: only what was chosen beside it may stand here.
    sections = [name for name in Recipe.model_fields if name != "model"]
    return heading + commented_yaml(whole, only=sections) + f"model: {json.dumps(resolved['model'])}\n"


def _resume_request(folder: Path, requested: dict[str, Any]) -> dict[str, Any] | None:
    """Return the resolved sections of the run in the folder, or None when there is none.

    Raises:
        IncompatibleError: the run was started from other sections; names what differs.
    """
    path = folder / "resolved.json"
    if not path.exists():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if requested in (saved["requested"], saved["resolved"]):
        return dict(saved["resolved"])
    changes = list(_differences("", saved["requested"], requested))
    raise IncompatibleError(
        f"{folder} was started from another recipe: {'; '.join(changes[:6])}.",
        hint="use another run folder (run=...), or --replace to start over",
    )


def _differences(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(f"{prefix}{key}.", before, after)
        elif before != after:
            yield f"{prefix}{key} was {json.dumps(before)}, is {json.dumps(after)}"


def _warn_of_changes(folder: Path, recipe: Recipe) -> None:
    """Warn when the machine differs from the one the run was started on: bits may then differ."""
    before = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    changes = list(_differences("", before, describe_machine(recipe.runtime)))
    if changes:
        _logger.warning(
            "the machine differs from the run's first one, bits may differ: %s", "; ".join(changes)
        )


def _describe(
    console: Console, setting: _Setting, recipe: Recipe, plan: Plan, baselines: Mapping[str, float]
) -> None:
    """Say what is about to happen."""
    parameters = sum(p.numel() for p in setting.state.parameters().values())
    tokens = plan.num_windows * plan.rows_per_step * recipe.data.row_length
    total = sum(entry.start + entry.end for entry in setting.fed)
    passes = [
        (entry.start + entry.end) / total * plan.num_windows * plan.rows_per_step / entry.reader.num_rows
        for entry in setting.entries
    ]
    epochs = passes[0]
    kind = f"{recipe.model.name} {recipe.model.preset}"
    if setting.start is not None:
        kind = str(setting.start.report["family"])
        _describe_start(console, setting, recipe)
    console.note(
        f"{kind}, {quantity(parameters, 'parameters')};"
        f" {recipe.objective.name}; {plan.num_windows:,} steps of {plan.rows_per_step} rows of"
        f" {recipe.data.row_length} tokens ({quantity(tokens, 'tokens')}, {epochs:.1f} passes over the text)"
    )
    if plan.forecast_seconds:
        console.note(f"forecast: {duration(plan.forecast_seconds)}")
    if plan.note:
        console.note(plan.note)
    floors = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    console.note(f"what the corpus alone predicts, nats a target: {floors}")


def _describe_start(console: Console, setting: _Setting, recipe: Recipe) -> None:
    """Say what was taken from the start, and what from the old text."""
    assert setting.start is not None
    report = setting.start.report
    parts = [f"from {report['folder']}: {', '.join(report['taken'])}"]
    for key in ("changed", "new"):
        if report[key]:
            parts.append(f"{key}: {', '.join(report[key])}")
    if report["left_out"]:
        parts.append("left out: " + ", ".join(f"{k} ({why})" for k, why in report["left_out"].items()))
    if report["optimizer"] == "continue":
        parts.append("with the weights and moments of its last state")
    console.note("; ".join(parts))
    if setting.old is not None:
        share = recipe.start.replay.share
        replayed = f"{share:.0%} of the rows" if share else "none of the rows"
        console.note(
            f"old text: {setting.old.run}, {replayed}; its validation targets are scored as old.loss"
        )


def _read_summary(run: Path, artifact: Artifact) -> dict[str, Any]:
    """Return the summary of a finished run."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary


class _ProgressHook(Hook):
    """Show loss, rate and remaining time."""

    name = "progress"

    def __init__(self, console: Console, plan: Plan, row_length: int) -> None:
        self.console = console
        self.tokens = plan.rows_per_step * row_length
        self.total = plan.num_windows * self.tokens
        self._first: tuple[float, int] | None = None
        self._loss: float | None = None
        self._valid: float | None = None

    def on_step(self, record: StepRecord, seconds: float) -> None:
        """Move the bar."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now - seconds, record.tokens - self.tokens)
        self._loss = record.loss if self._loss is None else 0.95 * self._loss + 0.05 * record.loss
        rate = (record.tokens - self._first[1]) / max(now - self._first[0], 1e-6)
        valid = "" if self._valid is None else f"  valid {self._valid:.3f}"
        self.console.progress(
            "training",
            done=record.tokens,
            total=self.total,
            unit="tokens",
            detail=f"{rate:,.0f} tok/s  loss {self._loss:.3f}{valid}",
        )

    def validation(self, window: int, scores: Mapping[str, float]) -> None:
        """Remember the last validation loss."""
        self._valid = scores["loss"]


def run_digest(run: Path) -> str:
    """Return a digest of everything a finished run decided: tokenizer, tokens, weights, loss column."""
    parts = {name: open_verified(run / name).digest for name in ("corpus", "tokenizer", "tokens", "model")}
    return digest_of({**parts, "metrics": (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8")})
