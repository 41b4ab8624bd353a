"""The one typed recipe: every section of a run, assembled from the components' configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from seedbed.config import Config, one_of
from seedbed.corpus.pipeline import CorpusConfig
from seedbed.data.store import TokensConfig
from seedbed.models import MODELS, FamilyConfig
from seedbed.models.modernbert import ModernBertConfig
from seedbed.objectives import OBJECTIVES, MaskedLMConfig, ObjectiveConfig
from seedbed.objectives.combination import COMBINATIONS
from seedbed.objectives.mixture import CombinationConfig
from seedbed.optim import OPTIMIZERS, AdamWConfig, OptimizerConfig
from seedbed.runtime import RuntimeConfig
from seedbed.tokenizer.train import TokenizerConfig
from seedbed.training.config import DataConfig, TrainingConfig
from seedbed.training.regularisation import RegularisationConfig
from seedbed.training.start import StartConfig

if TYPE_CHECKING:
    ModelSection = FamilyConfig
    ObjectiveSection = ObjectiveConfig | CombinationConfig
    OptimSection = OptimizerConfig
else:
    ModelSection = one_of(MODELS, default="modernbert")
    ObjectiveSection = one_of({**OBJECTIVES, **COMBINATIONS}, default="masked_lm")
    OptimSection = one_of(OPTIMIZERS, default="adamw")

__all__ = ["DEFAULT_MODELS", "Recipe"]

DEFAULT_MODELS = {name: kind.default_model for name, kind in OBJECTIVES.items()} | {
    name: kind.default_model for name, kind in COMBINATIONS.items() if kind.default_model
}
"""The family meant where a recipe names an objective and no model: the modern block of that kind."""


class Recipe(Config):
    """Describe a run from raw text to a model."""

    run: str = Field(
        "runs/default", description="Folder of the run: every stage, log and checkpoint lies in it."
    )
    corpus: CorpusConfig = Field(default_factory=CorpusConfig, description="Raw text to clean documents.")
    tokenizer: TokenizerConfig = Field(
        default_factory=TokenizerConfig, description="Documents to a vocabulary."
    )
    tokens: TokensConfig = Field(default_factory=TokensConfig, description="Documents to the token store.")
    data: DataConfig = Field(default_factory=DataConfig, description="From what rows the model learns.")
    start: StartConfig = Field(
        default_factory=StartConfig, description="From which weights: random ones, or a model that exists."
    )
    model: ModelSection = Field(default_factory=ModernBertConfig, description="What learns.")
    objective: ObjectiveSection = Field(default_factory=MaskedLMConfig, description="What is learned.")
    optim: OptimSection = Field(default_factory=AdamWConfig, description="How weights are updated.")
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="How long, in which portions."
    )
    regularisation: RegularisationConfig = Field(
        default_factory=RegularisationConfig, description="R-Drop and adversarial training."
    )
    runtime: RuntimeConfig = Field(
        default_factory=RuntimeConfig, description="On which machine; changes no result."
    )

    @model_validator(mode="before")
    @classmethod
    def _model_follows_objective(cls, data: Any) -> Any:
        """Fill in the family an objective implies and what that learns with; a start model brings its own."""
        if not isinstance(data, Mapping):
            return data
        start = data.get("start")
        if isinstance(start, Mapping) and start.get("path") is not None:
            return data
        objective, model = data.get("objective"), data.get("model", {})
        name = _first_name(objective)
        if isinstance(model, Mapping) and "name" not in model and name in DEFAULT_MODELS:
            data = {**data, "model": {**model, "name": DEFAULT_MODELS[name]}}
        return _with_optimizer_of_family(data)

    @model_validator(mode="after")
    def _one_average(self) -> Recipe:
        if self.optim.averages and (self.training.ema_decay or self.training.average_checkpoints):
            raise ValueError(
                f"{self.optim.name} averages weights itself: leave out training.ema_decay and training.average_checkpoints"
            )
        return self

    def run_folder(self) -> Path:
        """Return the run's folder."""
        return Path(self.run).expanduser()


def _with_optimizer_of_family(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Lay the optimizer settings of the model's family under the recipe's, unless it names another optimizer."""
    model, given = data.get("model"), data.get("optim", {})
    name = model.get("name") if isinstance(model, Mapping) else getattr(model, "name", None)
    own = MODELS[name].optimizer if isinstance(name, str) and name in MODELS else {}
    usual = AdamWConfig().name
    if not own or not isinstance(given, Mapping):
        return data
    if given.get("name", own.get("name", usual)) != own.get("name", usual):
        return data
    schedule = given.get("schedule", {})
    merged = {**own, **given}
    if "schedule" in own and isinstance(schedule, Mapping):
        merged["schedule"] = {**own["schedule"], **schedule}
    return {**data, "optim": merged}


def _first_name(objective: Any) -> Any:
    """Return the name of an `objective` section as it was written: of a mixture, its first entry's."""
    if isinstance(objective, Mapping):
        entries = objective.get("entries")
        if objective.get("name") == "mixture" and isinstance(entries, list) and entries:
            return _first_name(entries[0].get("objective") if isinstance(entries[0], Mapping) else None)
        return objective.get("name")
    return getattr(objective, "name", None)
