"""Score a run's model on held-out text, at the stored targets of every entry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace as _replaced

from seedbed.commands.assembly import Setting
from seedbed.commands.sharing import spread_of
from seedbed.commands.stages import Prepared
from seedbed.data.views import RowSource
from seedbed.evaluation.fixed_targets import build_validation
from seedbed.evaluation.intrinsic import EvaluationSet, score
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.combination import entries_of
from seedbed.recipe import Recipe
from seedbed.training.continued import OLD

__all__ = ["validation_of"]


def validation_of(
    recipe: Recipe, prepared: Prepared, setting: Setting, *, replace: bool
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
            setting.state.run(
                score,
                entry.objective,
                setting.state.learner.modules_by_name(number),
                stored[number][0],
                device=setting.device,
                compute_dtype=setting.compute_dtype,
                spread=spread_of(setting.state, recipe),
            )
            for number, entry in enumerate(setting.entries)
        ]
        found = together(scores, ["loss"])
        if setting.old is not None and old_stored is None:  # the same targets
            found |= {f"{OLD}{name}": value for name, value in scores[0].items()}
        if old_stored is not None:
            old = setting.state.run(
                score,
                setting.entries[0].objective,
                setting.state.learner.modules_by_name(0),
                old_stored,
                device=setting.device,
                compute_dtype=setting.compute_dtype,
                spread=spread_of(setting.state, recipe),
            )
            found |= {f"{OLD}{name}": value for name, value in old.items()}
        return found

    return evaluate, together(
        [baselines for _, baselines in stored], ["uniform", "unigram", "bigram", "chance"]
    )


def _old_validation(
    recipe: Recipe, prepared: Prepared, setting: Setting, *, replace: bool
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
