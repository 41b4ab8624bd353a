"""Sizes by name, and the recipe section every family shares. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from seedbed.config import Config
from seedbed.errors import IncompatibleError
from seedbed.models.config import Initialisation, Stack, TransformerConfig
from seedbed.models.translate import ClassifierForm, ExtraHead, Weight

__all__ = ["POST_NORM_OPTIMIZER", "PRESETS", "FamilyConfig", "Preset", "Shape", "gated_size"]

Preset = Literal["tiny", "mini", "small", "medium", "base"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Depth, width and heads."""

    num_layers: int
    hidden_size: int
    num_heads: int


PRESETS: dict[Preset, Shape] = {
    "tiny": Shape(2, 128, 2),
    "mini": Shape(4, 256, 4),
    "small": Shape(4, 512, 8),
    "medium": Shape(8, 512, 8),
    "base": Shape(12, 768, 12),
}
"""The sizes of "Well-Read Students Learn Better" (1908.08962), heads of 64."""


POST_NORM_OPTIMIZER: Mapping[str, Any] = {"learning_rate": 5e-4, "schedule": {"warmup_fraction": 0.1}}
"""For layers with norms after their sums: at 2e-3 they stay at the unigram distribution (docs/log.md)."""


def gated_size(hidden_size: int) -> int:
    """Return the width of a gated block with as many weights as a plain one of 4 D: 8 D / 3, rounded up to 64."""
    return -(-8 * hidden_size // 3 // 64) * 64


class FamilyConfig(Config, ABC):
    """What every family lets a recipe choose; None means the preset's or the family's own value."""

    model_type: ClassVar[str] = ""
    """What `config.json` calls the family; empty: its key in MODELS."""
    architectures: ClassVar[tuple[str, str]]
    """Hugging Face class with a language-model head, and without."""
    prefix: ClassVar[str]
    """What the class with a head puts before the names of the trunk, and the one without leaves away."""
    roots: ClassVar[tuple[str, ...]]
    """First parts of those names."""
    head_matrix: ClassVar[str]
    """Name of the output matrix where it is stored: always when untied, sometimes when tied."""
    renamed: ClassVar[dict[str, str]] = {}
    """Names older files have: a pattern at their start, and today's form."""
    harmless: ClassVar[dict[str, str]]
    """Tensors that may be there and are left out: a pattern, and why nothing is lost."""
    classifier: ClassVar[ClassifierForm | None] = None
    """The family's class for sentence classification; None: fine-tuned models are saved in our own form."""

    stack: ClassVar[Stack] = "encoder"
    """What kind of model the family is, before any recipe says more."""
    optimizer: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the recipe's `optim` section where random weights of this family do not learn with the usual ones."""

    native_reason: ClassVar[str] = ""
    """Why the family has no Hugging Face form, as in "no family there has ..."; empty: it has one."""
    nearest: ClassVar[str] = ""
    """The family to take instead where one that can be exported is needed."""

    name: str = Field("", description="Which family; see MODELS.")
    preset: Preset = Field(
        "mini", description="Size: tiny 2x128, mini 4x256, small 4x512, medium 8x512, base 12x768."
    )
    num_layers: int | None = Field(None, ge=1, description="Layers. null: the preset's.")
    hidden_size: int | None = Field(None, ge=1, description="Width. null: the preset's.")
    num_heads: int | None = Field(
        None, ge=1, description="Attention heads. null: hidden_size / 64, at least 1."
    )
    ffn_size: int | None = Field(
        None,
        ge=1,
        description="Width of the feed-forward block. null: 4 x hidden_size, or 8/3 of it when gated.",
    )
    max_length: int = Field(512, ge=8, description="Longest row the model can read, tokens.")
    hidden_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout after sublayers. null: 0, or 0.1 for a text that is read more than twenty times.",
    )
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on attention probabilities; costs the fused kernel."
    )
    stochastic_depth: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Rate at which the last layer's sublayers are left out for a row while training, falling linearly to 0"
        " towards the first. For deep models and many passes.",
    )
    initialisation: Initialisation | None = Field(
        None, description="How weights start. null: the family's own (docs/models.md)."
    )
    initialisation_std: float | None = Field(
        None, gt=0, description="Standard deviation of initial weights. null: sqrt(2 / (5 hidden_size))."
    )
    tie_embeddings: bool = Field(
        True, description="Use the token embedding as the output matrix: saves vocabulary x width weights."
    )
    query_stream: bool = Field(
        False, description="Add the content-blind second stream of XLNet; such a model cannot be exported."
    )

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        shape = self.shape()
        if shape.hidden_size % shape.num_heads:
            raise ValueError(
                f"hidden_size {shape.hidden_size} is not a multiple of num_heads {shape.num_heads}"
            )
        return self

    def shape(self) -> Shape:
        """Return depth, width and heads: the preset's, or what was overridden."""
        preset = PRESETS[self.preset]
        width = self.hidden_size or preset.hidden_size
        return Shape(
            num_layers=self.num_layers or preset.num_layers,
            hidden_size=width,
            num_heads=self.num_heads
            or (preset.num_heads if self.hidden_size is None else max(1, width // 64)),
        )

    @abstractmethod
    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary; `special_ids` maps pad, bos, eos, cls, sep, mask, unk to ids."""

    def _common(self, vocab_size: int, special_ids: Mapping[str, int] | None) -> dict[str, Any]:
        """Return the fields of the description that mean the same in every family."""
        shape = self.shape()
        return {
            "vocab_size": vocab_size,
            "hidden_size": shape.hidden_size,
            "num_layers": shape.num_layers,
            "num_heads": shape.num_heads,
            "num_kv_heads": shape.num_heads,
            "head_dim": shape.hidden_size // shape.num_heads,
            "max_length": self.max_length,
            "hidden_dropout": self.hidden_dropout or 0.0,
            "attention_dropout": self.attention_dropout,
            "stochastic_depth": self.stochastic_depth,
            "tie_embeddings": self.tie_embeddings,
            "query_stream": self.query_stream,
            "initialisation_std": self.initialisation_std,
            "special_ids": dict(special_ids or {}),
        }

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`; refuses by name what cannot be expressed exactly."""
        raise cls._no_form()

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate back to a `config.json`; refuses what the family cannot express."""
        raise cls._no_form()

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and the family's."""
        raise cls._no_form()

    @classmethod
    def extra_heads(cls, *, has_head: bool) -> dict[str, ExtraHead]:
        """Return the pretraining heads the family's folder has a place for, by their name in `EXTRA_HEADS`.

        Args:
            has_head: whether the language-model head is there too; the class may depend on it.
        """
        return {}

    @classmethod
    def _no_form(cls) -> IncompatibleError:
        """Return the error of a family that has no Hugging Face form."""
        return IncompatibleError(
            f"{cls.model_type or cls.__name__} has no Hugging Face form: {cls.native_reason}.",
            hint=f"model.name={cls.nearest}" if cls.nearest else "another family",
        )
