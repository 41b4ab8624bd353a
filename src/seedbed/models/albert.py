"""ALBERT: BERT's block with layers that share their weights and narrow embeddings (1909.11942)."""

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

__all__ = ["AlbertConfig"]

_PARTS = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "attention.output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward.input": "ffn",
    "feed_forward.output": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
}


class AlbertConfig(BertStyleConfig):
    """A small folder for the same work: one layer's weights run at every depth.

    Differs from the published models: GELU in its erf form, which a CPU computes faster (`hidden_act` says so).
    """

    architectures: ClassVar[tuple[str, str]] = ("AlbertForMaskedLM", "AlbertModel")
    prefix: ClassVar[str] = "albert."
    roots: ClassVar[tuple[str, ...]] = ("embeddings", "encoder", "pooler")
    head_matrix: ClassVar[str] = "predictions.decoder.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"albert\.embeddings\.(position|token_type)_ids": "constant ids, not weights",
        r"albert\.pooler\.(weight|bias)": "the pooler; hidden states do not pass it",
        r"sop_classifier\.classifier\.(weight|bias)": "the sentence-order head",
    }

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "AlbertForSequenceClassification", ("first",), output="classifier", dense="albert.pooler"
    )

    name: Literal["albert"] = Field(
        "albert", description="ALBERT: BERT's block, layers share weights, narrow embeddings."
    )
    type_vocab_size: int = Field(2, ge=1, description="Sentence marks (A/B).")
    embedding_size: int = Field(128, ge=1, description="Width of the embedding tables; 128 in every size.")
    num_layer_groups: int = Field(
        1, ge=1, description="Groups of layers with weights of their own; 1: all layers share one set."
    )
    layers_per_group: int = Field(1, ge=1, description="Different layers in a group, run in turn.")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        return self._describe(
            vocab_size,
            special_ids,
            embedding_size=self.embedding_size,
            num_layer_groups=self.num_layer_groups,
            layers_per_group=self.layers_per_group,
            type_vocab_size=self.type_vocab_size,
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`; its depth counts groups run, ours layers run."""
        keys = read_keys({"hidden_act": "gelu_new", **data})
        inner = data.get("inner_group_num", 1)
        keys["num_layers"] *= inner
        return TransformerConfig(
            **keys,
            family="albert",
            embedding_size=data.get("embedding_size", 128),
            num_layer_groups=data.get("num_hidden_groups", 1),
            layers_per_group=inner,
            head_activation=keys["activation"],
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`."""
        return {
            **write_keys(config, cls),
            "num_hidden_layers": config.num_layers // config.layers_per_group,
            "num_hidden_groups": max(config.num_layer_groups, 1),
            "inner_group_num": config.layers_per_group,
            "embedding_size": config.embedding_width,
            "classifier_dropout_prob": config.hidden_dropout,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        table = embedding_weights("albert.embeddings")
        table += dense("trunk.embedding.projection", "albert.encoder.embedding_hidden_mapping_in")
        for i in range(config.num_stored_layers):
            group, inner = divmod(i, config.layers_per_group)
            theirs = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}"
            table += layer_weights(config, i, theirs, _PARTS)
        if has_head:
            table += head_weights(
                config,
                cls.head_matrix,
                transform="predictions.dense",
                norm="predictions.LayerNorm",
                bias="predictions.decoder.bias",
                bias_copies=("predictions.bias",),
            )
        return table

    @classmethod
    def extra_heads(cls, *, has_head: bool) -> dict[str, ExtraHead]:
        """Return the place of the sentence-order head, which exists only beside the language model's."""
        if not has_head:
            return {}
        name = "extras.sentence_pair"
        weights = dense(f"{name}.pooler.dense", "albert.pooler")
        weights += dense(f"{name}.classifier", "sop_classifier.classifier")
        return {"sentence_pair": ExtraHead("AlbertForPreTraining", weights)}
