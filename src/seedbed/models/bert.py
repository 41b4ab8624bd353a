"""BERT: post-norm, learned positions, sentence marks (1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.config import TransformerConfig
from seedbed.models.presets import FamilyConfig
from seedbed.models.translate import (
    Weight,
    read_activation,
    read_special_ids,
    refuse_unless,
    required,
    write_activation,
)

__all__ = ["BertConfig"]

_FIXED: dict[str, Any] = {
    "family": "bert",
    "norm": "layer",
    "norm_place": "post",
    "norm_bias": True,
    "has_embedding_norm": True,
    "has_final_norm": False,
    "positions": "learned",
    "attention_bias": True,
    "ffn_bias": True,
    "head_transform": True,
    "head_transform_bias": True,
    "head_bias": True,
}


class BertConfig(FamilyConfig):
    """The classic encoder. Learns slower than `modernbert` in short runs, and is what most tools expect."""

    architectures: ClassVar[tuple[str, str]] = ("BertForMaskedLM", "BertModel")
    prefix: ClassVar[str] = "bert."
    roots: ClassVar[tuple[str, ...]] = ("embeddings", "encoder", "pooler")
    head_matrix: ClassVar[str] = "cls.predictions.decoder.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"bert\.embeddings\.(position|token_type)_ids": "constant ids, not weights",
        r"bert\.pooler\.dense\.(weight|bias)": "the pooler; hidden states do not pass it",
        r"cls\.seq_relationship\.(weight|bias)": "the next-sentence head",
    }

    name: Literal["bert"] = Field("bert", description="BERT: post-norm, learned positions, GELU.")
    type_vocab_size: int = Field(2, ge=1, description="Sentence marks (A/B).")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        shape = self.shape()
        return TransformerConfig(
            **self._common(vocab_size, special_ids),
            **_FIXED,
            ffn_size=self.ffn_size or 4 * shape.hidden_size,
            type_vocab_size=self.type_vocab_size,
            norm_eps=1e-12,
            activation="gelu",
            head_activation="gelu",
            initialisation=self.initialisation or "truncated_normal",
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`."""
        refuse_unless(data, "is_decoder", False)
        refuse_unless(data, "add_cross_attention", False)
        refuse_unless(data, "position_embedding_type", "absolute", None)
        width, heads = required(data, "hidden_size"), required(data, "num_attention_heads")
        activation = read_activation(data.get("hidden_act", "gelu"))
        return TransformerConfig(
            **_FIXED,
            vocab_size=required(data, "vocab_size"),
            hidden_size=width,
            num_layers=required(data, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            ffn_size=required(data, "intermediate_size"),
            max_length=data.get("max_position_embeddings", 512),
            type_vocab_size=data.get("type_vocab_size", 2),
            norm_eps=data.get("layer_norm_eps", 1e-12),
            activation=activation,
            head_activation=activation,
            hidden_dropout=data.get("hidden_dropout_prob", 0.1),
            attention_dropout=data.get("attention_probs_dropout_prob", 0.1),
            tie_embeddings=data.get("tie_word_embeddings", True),
            initialisation="truncated_normal",
            initialisation_std=data.get("initializer_range", 0.02),
            special_ids=read_special_ids(data, data["vocab_size"]),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`."""
        return {
            "model_type": "bert",
            "architectures": [cls.architectures[0]],
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.ffn_size,
            "hidden_act": write_activation(config.activation),
            "hidden_dropout_prob": config.hidden_dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
            "max_position_embeddings": config.max_length,
            "type_vocab_size": config.type_vocab_size,
            "initializer_range": config.std,
            "layer_norm_eps": config.norm_eps,
            "position_embedding_type": "absolute",
            "pad_token_id": config.special_ids.get("pad"),
            "bos_token_id": config.special_ids.get("bos"),
            "eos_token_id": config.special_ids.get("eos"),
            "tie_word_embeddings": config.tie_embeddings,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        width = config.hidden_size
        table = [
            Weight("trunk.embedding.token.weight", ("bert.embeddings.word_embeddings.weight",)),
            Weight("trunk.embedding.position.weight", ("bert.embeddings.position_embeddings.weight",)),
            Weight("trunk.embedding.token_type.weight", ("bert.embeddings.token_type_embeddings.weight",)),
            Weight("trunk.embedding.norm.weight", ("bert.embeddings.LayerNorm.weight",)),
            Weight("trunk.embedding.norm.bias", ("bert.embeddings.LayerNorm.bias",)),
        ]
        for i in range(config.num_layers):
            ours, theirs = f"trunk.layers.{i}", f"bert.encoder.layer.{i}"
            for kind in ("weight", "bias"):
                parts = tuple(f"{theirs}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
                table += [
                    Weight(f"{ours}.attention.qkv.{kind}", parts, rows=(width, width, width)),
                    Weight(f"{ours}.attention.output.{kind}", (f"{theirs}.attention.output.dense.{kind}",)),
                    Weight(f"{ours}.attention_norm.{kind}", (f"{theirs}.attention.output.LayerNorm.{kind}",)),
                    Weight(f"{ours}.feed_forward.input.{kind}", (f"{theirs}.intermediate.dense.{kind}",)),
                    Weight(f"{ours}.feed_forward.output.{kind}", (f"{theirs}.output.dense.{kind}",)),
                    Weight(f"{ours}.feed_forward_norm.{kind}", (f"{theirs}.output.LayerNorm.{kind}",)),
                ]
        if has_head:
            for kind in ("weight", "bias"):
                table += [
                    Weight(f"head.dense.{kind}", (f"cls.predictions.transform.dense.{kind}",)),
                    Weight(f"head.norm.{kind}", (f"cls.predictions.transform.LayerNorm.{kind}",)),
                ]
            table.append(
                Weight("head.bias", ("cls.predictions.decoder.bias",), copies=("cls.predictions.bias",))
            )
            if not config.tie_embeddings:
                table.append(Weight("head.weight", (cls.head_matrix,)))
        return table
