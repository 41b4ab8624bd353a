"""Configure a search: which keys of a recipe, between which values, judged by what, pruned how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from seedbed.compare.config import CostConfig
from seedbed.config import Config

__all__ = ["RangeConfig", "SearchConfig"]


class RangeConfig(Config):
    """The values of one key: a range, or choices."""

    low: float | None = Field(None, description="Smallest value.")
    high: float | None = Field(None, description="Largest value.")
    log: bool = Field(False, description="Draw by the logarithm: for rates.")
    integer: bool = Field(False, description="Whole numbers only.")
    choices: list[Any] = Field(default_factory=list, description="Instead of a range: these values.")

    @model_validator(mode="after")
    def _one_kind(self) -> RangeConfig:
        if self.choices:
            if self.low is not None or self.high is not None:
                raise ValueError("give choices, or low and high, not both")
            if len(self.choices) < 2:
                raise ValueError("one choice is none: give two or more")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0 (low is {self.low})")
        return self


class SearchConfig(Config):
    """Describe a search over keys of a recipe."""

    out: str = Field("runs/search", description="Folder of the shared stages, the trials, the page.")
    storage: str = Field(
        "", description="As of a comparison: sqlite:///FILE or postgresql://...; empty: search.db in `out`."
    )
    name: str = Field("search", description="Of the search within the storage.")
    recipe: dict[str, Any] = Field(
        default_factory=dict,
        description="The recipe searched around; what it says of the keys below is trial 0.",
    )
    space: dict[str, RangeConfig] = Field(
        default_factory=dict,
        description="Dotted key of a recipe to its values, as optim.learning_rate: {low: 5e-4, high: 8e-3}.",
    )
    trials: int = Field(30, ge=2, description="Runs in all, trial 0 with the recipe's own values included.")
    seed: int = Field(0, ge=0, description="Keys what the sampler draws, and every run.")
    cost: CostConfig = Field(
        default_factory=lambda: CostConfig(tokens=1_000_000, flops=None, minutes=None),
        description="What each run may spend.",
    )
    pruner: Literal["median", "none"] = Field(
        "median",
        description="median: end a run whose validation loss is above the median of those before at the same share.",
    )
    spared_trials: int = Field(5, ge=1, description="Runs that are finished before any is ended early.")
    spared_share: float = Field(
        0.4,
        ge=0.0,
        le=1.0,
        description="Share of a run before which it is not ended: while rates warm up and losses lie on the first plateau, their"
        " order says little of the end.",
    )

    @field_validator("space")
    @classmethod
    def _some(cls, space: dict[str, RangeConfig]) -> dict[str, RangeConfig]:
        for key in space:
            if "." not in key:
                raise ValueError(f"{key} is a section, not a key: write section.key")
        return space
