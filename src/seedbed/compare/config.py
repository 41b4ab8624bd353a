"""Configure a comparison: what varies, at which equal cost, under which seeds, judged by what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from seedbed.config import Config

__all__ = ["CompareConfig", "CostConfig", "JudgeConfig", "lay_over"]


class CostConfig(Config):
    """What every arm may spend; one of the four."""

    tokens: int | None = Field(None, gt=0, description="Tokens read, in whole steps.")
    flops: float | None = Field(
        None,
        gt=0,
        description="Operations of the matrix products, forward and backward, counted in one step of each arm.",
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes of training, by a probe of each arm's first seed, whose tokens the others read. For a machine with"
        " nothing else on it: see max_drift.",
    )
    own: bool = Field(
        False,
        description="What each arm's own recipe says, so that nothing is equal: for curves of runs of many lengths.",
    )
    max_drift: float = Field(
        0.1,
        gt=0.0,
        description="With minutes: how far the speed of a product may lie from its median over all arms, as a share, before an"
        " arm that was probed counts as run on another machine.",
    )

    @model_validator(mode="after")
    def _one(self) -> CostConfig:
        given = [n for n in ("tokens", "flops", "minutes", "own") if getattr(self, n)]
        if len(given) != 1:
            raise ValueError(
                f"give one of tokens, flops, minutes and own, not {' and '.join(given) or 'none'}"
            )
        return self

    @property
    def kind(self) -> Literal["tokens", "flops", "minutes", "own"]:
        """Return which is equal."""
        kinds: tuple[Literal["tokens", "flops", "minutes"], ...] = ("tokens", "flops", "minutes")
        return next((kind for kind in kinds if getattr(self, kind) is not None), "own")


class JudgeConfig(Config):
    """What finished arms are judged by."""

    by: Literal["auto", "likelihood", "minimal_pairs", "probes", "finetunes"] = Field(
        "auto",
        description="What the recommendation goes by. auto: likelihood where all arms are of one kind, else minimal pairs, else"
        " the mean over the tasks.",
    )
    text_mib: float = Field(
        1.0,
        ge=0.0,
        description="Validation text for likelihoods per byte, at most, by hash of documents. 0: all.",
    )
    pll_tokens: int = Field(
        1000,
        ge=0,
        description="Tokens of a masked model's pseudo-log-likelihood, each one row. 0: leave it out.",
    )
    minimal_pairs: list[str] = Field(
        default_factory=lambda: ["english"],
        description='Pairs of sentences: "english", made by this package, and files in BLiMP\'s layout. []: none.',
    )
    pairs_per_paradigm: int = Field(
        50, ge=0, description="Pairs of each paradigm, chosen by hash. 0: all of the files', 50 of ours."
    )
    tasks: list[str] = Field(
        default_factory=list,
        description="Known tasks (`seedbed finetune --help` lists them) to probe or fine-tune.",
    )
    data: str = Field(".", description="Folder the tasks' files lie in.")
    probes: bool = Field(True, description="Fit a linear classifier on the frozen features, for each task.")
    finetunes: bool = Field(False, description="Also fine-tune each arm on each task.")
    finetune: dict[str, Any] = Field(
        default_factory=lambda: {"epochs": 1, "max_train_examples": 2000},
        description="Keys of a fine-tune, as `seedbed finetune MODEL --print` explains them.",
    )
    max_examples: int = Field(
        2000, ge=0, description="Examples of each split of a probe, chosen by hash. 0: all."
    )


class CompareConfig(Config):
    """Describe a comparison of arms on one text."""

    out: str = Field("runs/compare", description="Folder of the shared stages, the arms, the page.")
    storage: str = Field(
        "",
        description="Where jobs and results are shared: sqlite:///FILE or postgresql://HOST/DB (a password in ~/.pgpass)."
        " Empty: compare.db in `out`.",
    )
    name: str = Field("arms", description="Of the comparison within the storage.")
    recipe: dict[str, Any] = Field(
        default_factory=dict,
        description="Sections of a recipe that all arms share; `seedbed config` explains the keys.",
    )
    arms: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="What varies: name of an arm to the keys of a recipe it sets, over the shared ones; dotted keys too.",
    )
    seeds: list[int] | int = Field(
        3, description="How many, from 0, or which: each arm trains under all of them, in the same order."
    )
    cost: CostConfig = Field(
        default_factory=lambda: CostConfig(tokens=2_000_000, flops=None, minutes=None),
        description="What is equal.",
    )
    judge: JudgeConfig = Field(default_factory=JudgeConfig, description="What arms are judged by.")
    level: float = Field(
        0.05, gt=0.0, lt=0.5, description="Chance that equal arms are said to differ anywhere among them."
    )

    @field_validator("arms")
    @classmethod
    def _names(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in arms:
            if not name or not all(c.isalnum() or c in "_-+." for c in name) or name.startswith("."):
                raise ValueError(
                    f"an arm's name is part of a folder's: letters, digits, _ - + and . (found {name!r})"
                )
        return {name: _nested(own) for name, own in arms.items()}

    @field_validator("recipe")
    @classmethod
    def _sections(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        return _nested(recipe)

    @field_validator("seeds")
    @classmethod
    def _some(cls, seeds: list[int] | int) -> list[int] | int:
        if isinstance(seeds, int) and seeds < 1:
            raise ValueError("at least one seed")
        if isinstance(seeds, list) and (not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0):
            raise ValueError("seeds are different numbers from 0, at least one")
        return seeds

    def seed_list(self) -> list[int]:
        """Return the seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def sections_of(self, arm: str, seed: int) -> dict[str, Any]:
        """Return the recipe's sections of an arm under a seed, the budget left out where it is counted in operations."""
        own = lay_over(self.recipe, self.arms[arm])
        training = dict(own.get("training") or {})
        for name in ("budget_minutes", "budget_tokens", "budget_steps") if not self.cost.own else ():
            training.pop(name, None)
        if self.cost.tokens is not None:
            training["budget_tokens"] = self.cost.tokens
        if self.cost.minutes is not None:
            training["budget_minutes"] = self.cost.minutes
        return {**own, "training": {**training, "seed": seed}}


def _nested(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections whose keys may be dotted (`objective.mask_rate: 0.4`) as sections within sections."""
    found: dict[str, Any] = {}
    for key, value in sections.items():
        inner = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        found = lay_over(found, inner)
    return found


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay sections over each other; a section of another `name` replaces the one below, whose keys are of another kind."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            is_other = "name" in under and "name" in value and under["name"] != value["name"]
            merged[key] = dict(value) if is_other else lay_over(under, value)
        else:
            merged[key] = value
    return merged
