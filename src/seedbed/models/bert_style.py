"""What BERT and the families made from it share: the block, keys of `config.json`, names of weights. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from seedbed.models.config import TransformerConfig
from seedbed.models.presets import POST_NORM_OPTIMIZER, FamilyConfig
from seedbed.models.translate import (
    Weight,
    read_activation,
    read_special_ids,
    refuse_unless,
    required,
    write_activation,
)

__all__ = [
    "POST_NORM",
    "BertStyleConfig",
    "dense",
    "embedding_weights",
    "head_weights",
    "layer_weights",
    "read_keys",
    "write_keys",
]

POST_NORM: dict[str, Any] = {
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
"""The fields of a description that BERT's block and head fix."""


class BertStyleConfig(FamilyConfig):
    """The recipe section of a family with BERT's block."""

    optimizer: ClassVar[Mapping[str, Any]] = POST_NORM_OPTIMIZER

    def _describe(
        self, vocab_size: int, special_ids: Mapping[str, int] | None, **fields: Any
    ) -> TransformerConfig:
        """Return the full description for a vocabulary: BERT's, changed by `fields`."""
        return TransformerConfig(
            **{
                **self._common(vocab_size, special_ids),
                **POST_NORM,
                "family": self.name,
                "ffn_size": self.ffn_size or 4 * self.shape().hidden_size,
                "norm_eps": 1e-12,
                "activation": "gelu",
                "head_activation": "gelu",
                "initialisation": self.initialisation or "truncated_normal",
                **fields,
            }
        )


def read_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that `config.json` says under the same keys in BERT, RoBERTa, ALBERT and ELECTRA.

    Raises:
        IncompatibleError: a key is missing, or asks for what is not built here.
    """
    refuse_unless(data, "is_decoder", False)
    refuse_unless(data, "add_cross_attention", False)
    refuse_unless(data, "position_embedding_type", "absolute", None)
    width, heads = required(data, "hidden_size"), required(data, "num_attention_heads")
    return {
        **POST_NORM,
        "vocab_size": required(data, "vocab_size"),
        "hidden_size": width,
        "num_layers": required(data, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "ffn_size": required(data, "intermediate_size"),
        "max_length": data.get("max_position_embeddings", 512),
        "type_vocab_size": data.get("type_vocab_size", 2),
        "norm_eps": data.get("layer_norm_eps", 1e-12),
        "activation": read_activation(data.get("hidden_act", "gelu")),
        "hidden_dropout": data.get("hidden_dropout_prob", 0.1),
        "attention_dropout": data.get("attention_probs_dropout_prob", 0.1),
        "tie_embeddings": data.get("tie_word_embeddings", True),
        "initialisation": "truncated_normal",
        "initialisation_std": data.get("initializer_range", 0.02),
        "special_ids": read_special_ids(data, data["vocab_size"]),
    }


def write_keys(config: TransformerConfig, family: type[FamilyConfig]) -> dict[str, Any]:
    """Return those keys of `config.json`."""
    return {
        "model_type": config.family,
        "architectures": [family.architectures[0]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_size,
        "hidden_act": write_activation(config.activation),
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_length,
        # These families always have the table: none at all is refused, since it returns as one of a single type.
        "type_vocab_size": max(config.type_vocab_size, 1),
        "initializer_range": config.std,
        "layer_norm_eps": config.norm_eps,
        "position_embedding_type": "absolute",
        "pad_token_id": config.special_ids.get("pad"),
        "bos_token_id": config.special_ids.get("bos"),
        "eos_token_id": config.special_ids.get("eos"),
        "tie_word_embeddings": config.tie_embeddings,
    }


def dense(ours: str, theirs: str) -> list[Weight]:
    """Return the names of a layer's matrix (or scale) and offset."""
    return [Weight(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def embedding_weights(theirs: str, *, has_types: bool = True) -> list[Weight]:
    """Return the names of the embedding tables and their norm; `theirs` is the folder's name of the whole."""
    ours = "trunk.embedding"
    table = [
        Weight(f"{ours}.token.weight", (f"{theirs}.word_embeddings.weight",)),
        Weight(f"{ours}.position.weight", (f"{theirs}.position_embeddings.weight",)),
    ]
    if has_types:
        table.append(Weight(f"{ours}.token_type.weight", (f"{theirs}.token_type_embeddings.weight",)))
    return table + dense(f"{ours}.norm", f"{theirs}.LayerNorm")


_BERT_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.input": "intermediate.dense",
    "feed_forward.output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


def layer_weights(
    config: TransformerConfig, layer: int, theirs: str, parts: Mapping[str, str] = _BERT_PARTS
) -> list[Weight]:
    """Return the names of one layer.

    Args:
        config: whose layer it is.
        layer: its index among the stored ones.
        theirs: the folder's name of the layer.
        parts: the folder's names of what is in it, by ours; the default is BERT's.
    """
    ours, width = f"trunk.layers.{layer}", config.hidden_size
    names = {part: f"{theirs}.{name}" for part, name in parts.items()}
    table = []
    for kind in ("weight", "bias"):
        stacked = tuple(f"{names[part]}.{kind}" for part in ("query", "key", "value"))
        table.append(Weight(f"{ours}.attention.qkv.{kind}", stacked, rows=(width, width, width)))
    for part in list(parts)[3:]:
        table += dense(f"{ours}.{part}", names[part])
    return table


def head_weights(
    config: TransformerConfig,
    matrix: str,
    *,
    transform: str,
    norm: str,
    bias: str,
    bias_copies: tuple[str, ...] = (),
) -> list[Weight]:
    """Return the names of the language-model head: its transform, norm, offset and, when untied, its matrix."""
    table = dense("head.dense", transform) + dense("head.norm", norm)
    table.append(Weight("head.bias", (bias,), copies=bias_copies))
    if not config.tie_embeddings:
        table.append(Weight("head.weight", (matrix,)))
    return table
