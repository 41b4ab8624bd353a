"""ELECTRA: BERT's block, narrow embeddings in small sizes; made to tell replaced tokens (2003.10555)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.bert_style import (
    BertStyleConfig,
    dense,
    embedding_weights,
    head_weights,
    layer_weights,
    read_keys,
    write_keys,
)
from seedbed.models.config import TransformerConfig
from seedbed.models.translate import ClassifierForm, ExtraHead, Weight

__all__ = ["ElectraConfig"]


class ElectraConfig(BertStyleConfig):
    """The discriminator, or with a language-model head the generator: both are of this family.

    Without a language-model head but with a head `replaced_token` the folder is of the class ElectraForPreTraining.
    """

    architectures: ClassVar[tuple[str, str]] = ("ElectraForMaskedLM", "ElectraModel")
    prefix: ClassVar[str] = "electra."
    roots: ClassVar[tuple[str, ...]] = ("embeddings", "embeddings_project", "encoder")
    head_matrix: ClassVar[str] = "generator_lm_head.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"electra\.embeddings\.(position|token_type)_ids": "constant ids, not weights",
        r"discriminator_predictions\..*": "the replaced-token head",
    }

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "ElectraForSequenceClassification",
        ("first",),
        output="classifier.out_proj",
        dense="classifier.dense",
        activation="gelu",
    )

    name: Literal["electra"] = Field(
        "electra", description="ELECTRA: BERT's block, made for replaced-token detection."
    )
    type_vocab_size: int = Field(2, ge=1, description="Sentence marks (A/B).")
    embedding_size: int | None = Field(
        None,
        ge=1,
        description="Width of the embedding tables. null: 128 up to width 256 (ELECTRA-Small), else hidden_size.",
    )

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        width = self.shape().hidden_size
        embedding = self.embedding_size or (128 if 128 < width <= 256 else width)
        return self._describe(
            vocab_size,
            special_ids,
            embedding_size=embedding if embedding != width else 0,
            type_vocab_size=self.type_vocab_size,
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`; the transform of its head has the erf form of GELU, whatever the blocks have."""
        keys = read_keys(data)
        width = data.get("embedding_size", 128)
        return TransformerConfig(
            **keys,
            family="electra",
            embedding_size=width if width != keys["hidden_size"] else 0,
            head_activation="gelu",
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`."""
        return {**write_keys(config, cls), "embedding_size": config.embedding_width}

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        table = embedding_weights("electra.embeddings")
        if config.embedding_size:
            table += dense("trunk.embedding.projection", "electra.embeddings_project")
        for i in range(config.num_layers):
            table += layer_weights(config, i, f"electra.encoder.layer.{i}")
        if has_head:
            table += head_weights(
                config,
                cls.head_matrix,
                transform="generator_predictions.dense",
                norm="generator_predictions.LayerNorm",
                bias="generator_lm_head.bias",
            )
        return table

    @classmethod
    def extra_heads(cls, *, has_head: bool) -> dict[str, ExtraHead]:
        """Return the place of the replaced-token head: the discriminator has no language-model head."""
        if has_head:
            return {}
        name = "extras.replaced_token"
        weights = dense(f"{name}.dense", "discriminator_predictions.dense")
        weights += dense(f"{name}.classifier", "discriminator_predictions.dense_prediction")
        return {"replaced_token": ExtraHead("ElectraForPreTraining", weights)}
