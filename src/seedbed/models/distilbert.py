"""DistilBERT: BERT without sentence marks and pooler, made to be half as deep as its teacher (1910.01108)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.bert_style import (
    POST_NORM,
    BertStyleConfig,
    embedding_weights,
    head_weights,
    layer_weights,
)
from seedbed.models.config import TransformerConfig
from seedbed.models.translate import (
    ClassifierForm,
    Weight,
    read_activation,
    read_special_ids,
    required,
    write_activation,
)

__all__ = ["DistilBertConfig"]

_FIXED: dict[str, Any] = {**POST_NORM, "family": "distilbert", "norm_eps": 1e-12}

_PARTS = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward.input": "ffn.lin1",
    "feed_forward.output": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}


class DistilBertConfig(BertStyleConfig):
    """The student of a BERT: the same block, so its weights can start as every other layer of the teacher."""

    architectures: ClassVar[tuple[str, str]] = ("DistilBertForMaskedLM", "DistilBertModel")
    prefix: ClassVar[str] = "distilbert."
    roots: ClassVar[tuple[str, ...]] = ("embeddings", "transformer")
    head_matrix: ClassVar[str] = "vocab_projector.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"distilbert\.embeddings\.position_ids": "constant ids, not weights"
    }

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "DistilBertForSequenceClassification",
        ("first",),
        output="classifier",
        dense="pre_classifier",
        activation="relu",
    )

    name: Literal["distilbert"] = Field(
        "distilbert", description="DistilBERT: BERT's block without sentence marks."
    )

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        return self._describe(vocab_size, special_ids)

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`. `sinusoidal_pos_embds` only says how the position table began, which is stored."""
        width, heads = required(data, "dim"), required(data, "n_heads")
        activation = read_activation(data.get("activation", "gelu"))
        return TransformerConfig(
            **_FIXED,
            vocab_size=required(data, "vocab_size"),
            hidden_size=width,
            num_layers=required(data, "n_layers"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            ffn_size=data.get("hidden_dim", 4 * 768),
            max_length=data.get("max_position_embeddings", 512),
            activation=activation,
            head_activation=activation,
            hidden_dropout=data.get("dropout", 0.1),
            attention_dropout=data.get("attention_dropout", 0.1),
            tie_embeddings=data.get("tie_word_embeddings", True),
            initialisation="truncated_normal",
            initialisation_std=data.get("initializer_range", 0.02),
            special_ids=read_special_ids(data, data["vocab_size"]),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`."""
        return {
            "model_type": "distilbert",
            "architectures": [cls.architectures[0]],
            "vocab_size": config.vocab_size,
            "dim": config.hidden_size,
            "n_layers": config.num_layers,
            "n_heads": config.num_heads,
            "hidden_dim": config.ffn_size,
            "activation": write_activation(config.activation),
            "dropout": config.hidden_dropout,
            "attention_dropout": config.attention_dropout,
            "max_position_embeddings": config.max_length,
            "initializer_range": config.std,
            "sinusoidal_pos_embds": False,
            "pad_token_id": config.special_ids.get("pad"),
            "bos_token_id": config.special_ids.get("bos"),
            "eos_token_id": config.special_ids.get("eos"),
            "tie_word_embeddings": config.tie_embeddings,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        table = embedding_weights("distilbert.embeddings", has_types=False)
        for i in range(config.num_layers):
            table += layer_weights(config, i, f"distilbert.transformer.layer.{i}", _PARTS)
        if has_head:
            table += head_weights(
                config,
                cls.head_matrix,
                transform="vocab_transform",
                norm="vocab_layer_norm",
                bias="vocab_projector.bias",
            )
        return table
