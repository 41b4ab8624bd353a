"""Configure where a run's weights come from: a model that exists, what is changed in it, and what must not be forgotten."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from seedbed.config import Config
from seedbed.models.extend_positions import Extension
from seedbed.models.grow import Depth
from seedbed.tokenizer.extend import ExtendVocabularyConfig

__all__ = ["GrowConfig", "ReplayConfig", "StartConfig"]


class GrowConfig(Config):
    """Make the start model larger before it trains (docs/models.md)."""

    num_layers: int | None = Field(None, ge=1, description="Layers afterwards. null: as they are.")
    how: Depth = Field(
        "stack",
        description="Where added layers come from. stack: the stack upon itself. interleave: each layer repeated in place."
        " identity: silent layers on top, the same outputs at first (pre-norm models).",
    )
    width_factor: int = Field(
        1, ge=1, description="Times the width, heads and feed-forward size; outputs stay."
    )
    ffn_size: int | None = Field(
        None, ge=1, description="Feed-forward size alone. null: as it is, times width_factor."
    )
    noise: float = Field(
        0.01,
        ge=0.0,
        description="Relative spread added to copied rows when widening, so that copies can grow apart.",
    )


class ReplayConfig(Config):
    """Old text among the new, against forgetting; its validation targets are scored along the way either way."""

    run: str | None = Field(
        None,
        description="Run folder with the old text's token store. null: start.path, where that is a run folder.",
    )
    share: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of each step's rows that is old text, read with the first objective. 0: none.",
    )


class StartConfig(Config):
    """From which model a run starts; without a path from random weights."""

    path: str | None = Field(
        None,
        description="Run folder, its model folder, or a Hugging Face folder. The tokenizer and the model's description come"
        " with it. null: random weights.",
    )
    digest: str | None = Field(
        None,
        description="Content hash the start must have, as a resolved recipe writes it. null: whatever is there.",
    )
    optimizer: Literal["fresh", "continue"] = Field(
        "fresh",
        description="continue: take weights and moments of the run's newest checkpoint, its last state, instead of the"
        " exported weights. The schedule starts anew, warm-up included, either way.",
    )
    max_length: int | None = Field(
        None, ge=8, description="Extend the positions to rows of so many tokens. null: as they are."
    )
    position_method: Extension | None = Field(
        None,
        description="How they are extended: repeat, interpolate (learned); ntk, interpolate (rope). null: the first.",
    )
    grow: GrowConfig = Field(default_factory=GrowConfig, description="Make the model larger.")
    extend_vocabulary: ExtendVocabularyConfig = Field(
        default_factory=ExtendVocabularyConfig, description="Add words of the new text to the vocabulary."
    )
    replay: ReplayConfig = Field(default_factory=ReplayConfig, description="Old text among the new.")
    max_forgetting: float | None = Field(
        None,
        gt=0.0,
        description="Stop at the first validation where the loss on the old text stands more than this above its value before"
        " training, nats; weights of such a validation are not exported. null: never.",
    )

    @model_validator(mode="after")
    def _needs_a_path(self) -> StartConfig:
        if self.path is None:
            given = [
                name
                for name, field in type(self).model_fields.items()
                if getattr(self, name) != field.get_default(call_default_factory=True)
            ]
            if given:
                raise ValueError(f"{', '.join(f'start.{name}' for name in given)} needs start.path")
        if self.position_method is not None and self.max_length is None:
            raise ValueError("start.position_method needs start.max_length")
        if self.optimizer == "continue" and (self.changes_shapes or self.max_length is not None):
            raise ValueError(
                "start.optimizer=continue needs the very weights the moments belong to: nothing may be grown or extended"
            )
        return self

    @property
    def changes_shapes(self) -> bool:
        """Say whether weights change their shapes."""
        grow = self.grow
        return (
            self.extend_vocabulary.num_tokens > 0
            or grow.num_layers is not None
            or grow.width_factor > 1
            or grow.ffn_size is not None
        )
