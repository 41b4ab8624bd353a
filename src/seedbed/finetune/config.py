"""Configure a fine-tune: the task, how long, at which rate, how many seeds. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from seedbed.config import Config, one_of
from seedbed.optim import OPTIMIZERS, AdamWConfig, OptimizerConfig
from seedbed.runtime import RuntimeConfig
from seedbed.tasks import TaskConfig
from seedbed.training.regularisation import RegularisationConfig

if TYPE_CHECKING:
    OptimSection = OptimizerConfig
else:
    OptimSection = one_of(OPTIMIZERS, default="adamw")

__all__ = ["FinetuneConfig"]


_OPTIM: dict[str, Any] = {"weight_decay": 0.01, "schedule": {"warmup_fraction": 0.1, "min_warmup_steps": 0}}
"""BERT's recipe where a fine-tune says nothing else: a tenth of the steps to warm up, then linearly to zero."""


class FinetuneConfig(Config):
    """Say what a pretrained model is to learn, and how."""

    task: TaskConfig = Field(
        default_factory=TaskConfig, description="Where the labelled examples are and what they mean."
    )
    pooling: Literal["auto", "first", "mean", "last"] = Field(
        "auto",
        description="Features of a text: of its first token, the mean of all, of its last token. auto: as the family's class.",
    )
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="On the features before the last matrix.")
    hidden_dropout: float | None = Field(
        0.1,
        ge=0.0,
        lt=1.0,
        description="Inside the model while it learns the task. null: as it was pretrained.",
    )
    stochastic_depth: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="Rate at which the last layer's sublayers are left out for a row. null: as it was pretrained.",
    )
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of the target mass spread over all classes."
    )
    max_length: int = Field(
        128,
        ge=0,
        description="Tokens of a text or a pair, special ones included; of a longer pair the longer text is cut. 0: the model's.",
    )
    max_train_examples: int = Field(
        0, ge=0, description="Training examples to use, chosen by hash of the text. 0: all."
    )
    epochs: float = Field(3.0, gt=0.0, description="Passes over the training examples.")
    batch_rows: int = Field(32, ge=1, description="Examples of one optimizer step.")
    micro_batch_rows: int = Field(
        0, ge=0, description="Examples of one forward pass; changes rounding only. 0: all of a step."
    )
    seeds: int = Field(
        1,
        ge=1,
        description="How often to train, with seeds seed, seed + 1, ...: mean and spread are reported.",
    )
    seed: int = Field(
        0, ge=0, description="The first seed: keys the new head, the order of examples and dropout."
    )
    evaluations_per_epoch: float = Field(
        2.0, gt=0.0, description="How often dev is scored; the weights of the best score are kept."
    )
    patience: int = Field(
        0, ge=0, description="Stop after this many scores of dev without a better one. 0: never."
    )
    checkpoint_minutes: float = Field(
        5.0, gt=0.0, description="Minutes between checkpoints; changes no result."
    )
    learning_rate: float | None = Field(
        None,
        gt=0.0,
        description="Peak rate; stands in for optim.learning_rate. null: 4e-4 (256 / width)^2, which is 4e-4 at 256 (measured,"
        " docs/finetuning.md) and 4.4e-5 at 768, within the 2e-5 to 5e-5 of BERT.",
    )
    regularisation: RegularisationConfig = Field(
        default_factory=RegularisationConfig,
        description="R-Drop and adversarial training (docs/regularisation.md).",
    )
    optim: OptimSection = Field(
        default_factory=AdamWConfig, description="How weights are updated, at the rate above."
    )
    runtime: RuntimeConfig = Field(
        default_factory=RuntimeConfig, description="On which machine; changes no result."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_optim(cls, data: Any) -> Any:
        """Fill in BERT's recipe where the optimizer's section does not say otherwise."""
        if not isinstance(data, Mapping):
            return data
        given = data.get("optim", {})
        if not isinstance(given, Mapping):
            return data
        schedule = given.get("schedule", {})
        if isinstance(schedule, Mapping):
            linear = {"name": "linear", **_OPTIM["schedule"]}
            schedule = {**linear, **schedule} if schedule.get("name", "linear") == "linear" else schedule
        adamw = {"beta2": 0.999} if given.get("name", "adamw") == "adamw" else {}
        filled = {**adamw, "weight_decay": _OPTIM["weight_decay"], **given, "schedule": schedule}
        return {**data, "optim": filled}

    @model_validator(mode="after")
    def _one_rate(self) -> FinetuneConfig:
        if self.optim.learning_rate != type(self.optim).model_fields["learning_rate"].default:
            raise ValueError("set learning_rate, not optim.learning_rate")
        return self

    def optimizer(self, width: int) -> OptimizerConfig:
        """Return the optimizer's section with the peak rate for a model so wide."""
        return self.optim.updated(learning_rate=self.learning_rate or 4e-4 * (256 / width) ** 2)
