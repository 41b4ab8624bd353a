"""XLNet: two streams over permuted orders, relative positions (1906.08237)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

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

__all__ = ["XLNetConfig"]

_FIXED: dict[str, Any] = {
    "family": "xlnet",
    "attention_kind": "xlnet",
    "type_vocab_size": 3,
    "norm": "layer",
    "norm_place": "post",
    "norm_bias": True,
    "has_embedding_norm": False,
    "has_final_norm": False,
    "positions": "none",
    "attention_bias": False,
    "ffn_bias": True,
    "head_bias": True,
    "query_stream": True,
}

_MAX_LENGTH = 512
"""Rows the released models were trained on; their `config.json` names no limit."""


class XLNetConfig(FamilyConfig):
    """The encoder for permutation language modelling. Costs more a step than `bert`, and learns as slowly in short runs."""

    optimizer: ClassVar[Mapping[str, Any]] = POST_NORM_OPTIMIZER
    architectures: ClassVar[tuple[str, str]] = ("XLNetLMHeadModel", "XLNetModel")
    prefix: ClassVar[str] = "transformer."
    roots: ClassVar[tuple[str, ...]] = ("word_embedding", "mask_emb", "layer")
    head_matrix: ClassVar[str] = "lm_loss.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"(sequence_summary|logits_proj|start_logits|end_logits|answer_class)\..*": "the head of another task",
    }

    name: Literal["xlnet"] = Field("xlnet", description="XLNet: two-stream relative attention, post-norm.")
    clamp_length: int = Field(
        0, ge=0, description="Distances beyond this count as this. 0: all are told apart."
    )
    query_stream: Literal[True] = Field(
        True, description="The second stream is part of this family, and is exported."
    )

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        shape = self.shape()
        return TransformerConfig(
            **{**self._common(vocab_size, special_ids), **_FIXED},
            ffn_size=self.ffn_size or 4 * shape.hidden_size,
            clamp_length=self.clamp_length,
            norm_eps=1e-12,
            activation="gelu",
            initialisation=self.initialisation or "normal",
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`. Memory (`mem_len`, `reuse_len`) changes no output of a single row and is not kept."""
        refuse_unless(data, "attn_type", "bi")
        refuse_unless(data, "bi_data", False)
        refuse_unless(data, "same_length", False)
        refuse_unless(data, "untie_r", True)
        width, heads = required(data, "d_model"), required(data, "n_head")
        vocab_size = data.get("vocab_size") or required(data, "n_token")
        return TransformerConfig(
            **_FIXED,
            vocab_size=vocab_size,
            hidden_size=width,
            num_layers=required(data, "n_layer"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=data.get("d_head") or width // heads,
            ffn_size=required(data, "d_inner"),
            max_length=data.get("n_positions", _MAX_LENGTH),
            clamp_length=max(0, data.get("clamp_len", -1)),
            norm_eps=data.get("layer_norm_eps", 1e-12),
            activation=read_activation(data.get("ff_activation", "gelu")),
            hidden_dropout=data.get("dropout", 0.1),
            attention_dropout=data.get("dropout", 0.1),
            tie_embeddings=data.get("tie_word_embeddings", True),
            initialisation="normal",
            initialisation_std=data.get("initializer_range", 0.02),
            special_ids=read_special_ids(data, vocab_size),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`. `n_positions` is ours: theirs has no word for the longest row."""
        return {
            "model_type": "xlnet",
            "architectures": [cls.architectures[0]],
            "vocab_size": config.vocab_size,
            "d_model": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "d_head": config.head_dim,
            "d_inner": config.ffn_size,
            "n_positions": config.max_length,
            "clamp_len": config.clamp_length or -1,
            "ff_activation": write_activation(config.activation),
            "attn_type": "bi",
            "bi_data": False,
            "same_length": False,
            "untie_r": True,
            "mem_len": None,
            "reuse_len": None,
            "dropout": config.hidden_dropout,
            "initializer_range": config.std,
            "layer_norm_eps": config.norm_eps,
            "pad_token_id": config.special_ids.get("pad"),
            "bos_token_id": config.special_ids.get("bos"),
            "eos_token_id": config.special_ids.get("eos"),
            "tie_word_embeddings": config.tie_embeddings,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        width, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
        inner, cube = heads * head_dim, (width, heads, head_dim)
        table = [
            Weight("trunk.embedding.token.weight", ("transformer.word_embedding.weight",)),
            Weight("trunk.embedding.query", ("transformer.mask_emb",), shape=(1, 1, width)),
        ]
        for i in range(config.num_layers):
            ours, theirs = f"trunk.layers.{i}", f"transformer.layer.{i}"
            attention = f"{ours}.attention"
            projections = tuple(f"{theirs}.rel_attn.{part}" for part in "qkv")
            table += [
                Weight(
                    f"{attention}.qkv.weight",
                    projections,
                    rows=(inner, inner, inner),
                    is_transposed=True,
                    shape=cube,
                ),
                Weight(
                    f"{attention}.relative.weight", (f"{theirs}.rel_attn.r",), is_transposed=True, shape=cube
                ),
                Weight(f"{attention}.output.weight", (f"{theirs}.rel_attn.o",), shape=cube),
                Weight(f"{attention}.segment", (f"{theirs}.rel_attn.seg_embed",), shape=(2, heads, head_dim)),
            ]
            for part, letter in (("content", "w"), ("position", "r"), ("segment", "s")):
                source = f"{theirs}.rel_attn.r_{letter}_bias"
                table.append(Weight(f"{attention}.{part}_query", (source,), shape=(heads, head_dim)))
            for kind in ("weight", "bias"):
                table += [
                    Weight(f"{ours}.attention_norm.{kind}", (f"{theirs}.rel_attn.layer_norm.{kind}",)),
                    Weight(f"{ours}.feed_forward.input.{kind}", (f"{theirs}.ff.layer_1.{kind}",)),
                    Weight(f"{ours}.feed_forward.output.{kind}", (f"{theirs}.ff.layer_2.{kind}",)),
                    Weight(f"{ours}.feed_forward_norm.{kind}", (f"{theirs}.ff.layer_norm.{kind}",)),
                ]
        if has_head:
            table.append(Weight("head.bias", ("lm_loss.bias",)))
            if not config.tie_embeddings:
                table.append(Weight("head.weight", (cls.head_matrix,)))
        return table
