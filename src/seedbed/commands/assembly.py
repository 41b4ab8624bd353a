"""Put a run together: model, objectives, rows, validation, and the step of a window, from a recipe and its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as _replaced
from typing import Any

import torch

from seedbed.commands.samples import take_samples
from seedbed.commands.sharing import (
    check_sharding,
    check_tensor_parallel,
)
from seedbed.commands.stages import Prepared
from seedbed.commands.start import OldText, Start
from seedbed.data.store import TokenStore
from seedbed.data.views import RowReader, RowSource
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.hashing import at_device, fold, key_from
from seedbed.models.folder import settle_form
from seedbed.models.heads import limit_logits
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.models.trunks import compile_stacks, set_recomputing, use_flex
from seedbed.objectives.base import Objective, Vocabulary
from seedbed.objectives.chunked_cross_entropy import compile_losses
from seedbed.objectives.combination import entries_of
from seedbed.objectives.mixture import MixtureConfig
from seedbed.recipe import Recipe
from seedbed.training.ahead import Windows
from seedbed.training.budget import Plan
from seedbed.training.feed import Entry, Feed
from seedbed.training.loss_scale import LossScale
from seedbed.training.state import TrainingState
from seedbed.training.step import Learner, MicroBatch, StepResult, train_step

__all__ = [
    "Setting",
    "assemble",
    "feed_of",
    "rows_of_window",
    "run_window",
    "samples_of",
]


@dataclass(slots=True)
class Setting:
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

    @property
    def has_best(self) -> bool:
        """Say whether validation losses of different steps compare, so that the lowest is the best."""
        return not _moving([entry.objective for entry in self.entries])


def assemble(
    recipe: Recipe, prepared: Prepared, start: Start | None = None, old: OldText | None = None
) -> Setting:
    """Build objective, model, optimizer and rows; refuse what does not fit before anything runs."""
    check_sharding(recipe)
    vocabulary = Vocabulary.of(prepared.tokenizer)
    sections = entries_of(recipe.objective)
    description = (
        recipe.model.build(vocab_size=prepared.tokenizer.vocab_size, special_ids=vocabulary.role_ids())
        if start is None
        else start.model.config
    )
    check_tensor_parallel(recipe, description)
    vocabulary = _replaced(vocabulary, decoder_start_id=description.special_ids.get("decoder_start"))
    objectives = [
        section.objective.build(
            vocabulary, row_length=recipe.data.row_length, is_segmented=recipe.data.is_segmented
        )
        for section in sections
    ]
    for objective in objectives:
        objective.check(description)
    if recipe.training.early_stopping_patience and (moving := _moving(objectives)):
        raise IncompatibleError(
            f"training.early_stopping_patience waits for a lower loss, and that of {moving} rises while it learns: its"
            " generator makes the task harder.",
            hint="training.early_stopping_patience=0",
        )
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
    set_recomputing(learner, recipe.runtime.activation_checkpointing)
    limit_logits(learner, recipe.runtime.loss_logits_bytes())
    if device.type == "cuda" and recipe.runtime.attention_kernel() == "flex":
        use_flex(learner)
    if recipe.runtime.compiles():
        compile_stacks(learner, mode="reduce-overhead" if recipe.runtime.compile == "graphs" else None)
        compile_losses(learner)
    state = TrainingState(learner, recipe.optim.build(learner.parts.named_parameters()))
    if recipe.runtime.compute_dtype() == torch.float16:
        state.loss_scale = LossScale(device)
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
        reader = RowReader(
            objective.make_view(source), name=name, seed=seed, draw_epochs=recipe.data.draw_epochs
        )
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
    return Setting(entries, model, state, device, recipe.runtime.compute_dtype(), start, old, replay)


def samples_of(setting: Setting, prepared: Prepared) -> list[dict[str, Any]]:
    """Return samples of the model, where an objective trains a head that speaks."""
    if all(entry.objective.speaks == "nothing" for entry in setting.entries):
        return []
    return take_samples(setting.model, prepared.tokenizer, prepared.store, device=setting.device)


def feed_of(setting: Setting, plan: Plan, *, is_exact: bool = False, of_all: bool = False) -> Feed:
    """Return what hands out this worker's micro-batches of the run's windows, or those of all workers."""
    return Feed(
        setting.fed,
        rows_per_step=plan.rows_per_step,
        num_windows=plan.num_windows,
        micro_batch_rows=plan.micro_batch_rows,
        worker=0 if of_all else setting.state.data_worker,
        num_workers=1 if of_all else setting.state.num_data_workers,
        is_exact=is_exact,
    )


def rows_of_window(setting: Setting, plan: Plan, window: int) -> dict[str, list[int]]:
    """Return the numbers of the rows that a window reads, of all workers, by entry."""
    rows: dict[str, list[int]] = {}
    for micro in feed_of(setting, plan, of_all=True).micro_batches(window):
        if micro.batch.row_ids is not None:
            rows.setdefault(setting.fed[micro.entry].label, []).extend(micro.batch.row_ids.tolist())
    return rows


def run_window(
    setting: Setting,
    state: TrainingState,
    recipe: Recipe,
    feed: Windows,
    *,
    rate: float | None = None,
    record: Callable[[int, Sequence[MicroBatch]], None] | None = None,
) -> StepResult:
    """Do the step of `state.window`: everything about it follows from that number (but for a `rate` that is given).

    Args:
        setting: what the run is made of.
        state: advanced by one update; its `window` is not.
        recipe: the run's.
        feed: hands out its rows.
        rate: learning rate in place of the schedule's.
        record: told of the rows that are read.
    """
    window, history = state.window, state.history
    made = feed.micro_batches(window)
    if record is not None:
        record(window, made)
    micro_batches = [micro.to(setting.device) for micro in made]
    perturbation = recipe.regularisation.perturbation()
    if recipe.runtime.compile == "graphs" and (len(made) > 1 or perturbation is not None):
        # A second backward pass would write over the gradients the first one left in the graph's memory.
        raise ConfigError(
            f"runtime.compile=graphs needs steps of one forward and backward pass; this one has {len(made)} micro-batches"
            f"{'' if perturbation is None else ', each passed several times'}.",
            hint="runtime.compile=true, or a smaller training.batch_tokens",
        )
    result = train_step(
        state.wrapped or state.learner,
        state.optimizer,
        micro_batches,
        objectives=[entry.objective for entry in setting.fed],
        progress=window / max(1, feed.num_windows),
        learning_rate=recipe.optim.rate(window, feed.num_windows, history) if rate is None else rate,
        settings=recipe.optim.settings(window, feed.num_windows, history),
        max_grad_norm=recipe.optim.max_grad_norm,
        dropout_key=at_device(fold(key_from(recipe.training.seed, "dropout"), window), setting.device),
        compute_dtype=setting.compute_dtype,
        perturbation=perturbation,
        embedding_width=setting.model.config.embedding_width,
        is_exact=recipe.training.exact,
        spikes=state.spikes,
        loss_scale=state.loss_scale,
        shards=state.shards,
    )
    if state.average is not None:
        state.average.update(state.parameters(), window, result.is_applied)
    return result


def _moving(objectives: Sequence[Objective]) -> str:
    """Return the names of objectives whose losses at two steps do not compare."""
    return ", ".join(objective.config.name for objective in objectives if not objective.is_stationary)
