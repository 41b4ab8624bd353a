"""BART: an encoder-decoder of post-norm layers with learned positions (1910.13461)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.config import Stack, TransformerConfig
from seedbed.models.presets import POST_NORM_OPTIMIZER, FamilyConfig
from seedbed.models.translate import (
    Weight,
    read_activation,
    read_special_ids,
    refuse_unless,
    required,
    write_activation,
)

__all__ = ["BartConfig"]

_FIXED: dict[str, Any] = {
    "family": "bart",
    "norm": "layer",
    "norm_place": "post",
    "norm_bias": True,
    "norm_eps": 1e-5,
    "has_embedding_norm": True,
    "has_final_norm": False,
    "positions": "learned",
    "position_offset": 2,
    "attention_bias": True,
    "ffn_bias": True,
    "head_bias": True,
}


class BartConfig(FamilyConfig):
    """The encoder-decoder made to restore damaged text: a BERT that a GPT reads."""

    optimizer: ClassVar[Mapping[str, Any]] = POST_NORM_OPTIMIZER
    architectures: ClassVar[tuple[str, str]] = ("BartForConditionalGeneration", "BartModel")
    prefix: ClassVar[str] = "model."
    roots: ClassVar[tuple[str, ...]] = ("shared", "encoder", "decoder")
    head_matrix: ClassVar[str] = "lm_head.weight"
    stack: ClassVar[Stack] = "encoder_decoder"
    harmless: ClassVar[dict[str, str]] = {
        r"model\.(encoder|decoder)\.version": "a mark of old files, not a weight",
    }

    name: Literal["bart"] = Field("bart", description="BART: encoder-decoder, post-norm, learned positions.")
    num_layers: int | None = Field(
        None, ge=1, description="Layers of the encoder, and of the decoder. null: the preset's."
    )
    num_decoder_layers: int | None = Field(
        None, ge=1, description="Layers of the decoder. null: as many as the encoder's."
    )
    scale_embedding: bool = Field(
        False, description="Multiply token embeddings by sqrt(hidden_size); the published models do not."
    )

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary; a decoder begins with the end token unless `decoder_start` is given."""
        shape = self.shape()
        ids = dict(special_ids or {})
        if "eos" in ids:
            ids.setdefault("decoder_start", ids["eos"])
        return TransformerConfig(
            **self._common(vocab_size, ids),
            **_FIXED,
            num_decoder_layers=self.num_decoder_layers or shape.num_layers,
            ffn_size=self.ffn_size or 4 * shape.hidden_size,
            activation="gelu",
            embedding_scale=math.sqrt(shape.hidden_size) if self.scale_embedding else 1.0,
            initialisation=self.initialisation or "normal",
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`; both stacks must have the same heads and feed-forward width."""
        refuse_unless(data, "is_encoder_decoder", True)
        width, heads = required(data, "d_model"), required(data, "encoder_attention_heads")
        ffn_size = required(data, "encoder_ffn_dim")
        refuse_unless(data, "decoder_attention_heads", heads)
        refuse_unless(data, "decoder_ffn_dim", ffn_size)
        refuse_unless(data, "normalize_before", False)
        refuse_unless(data, "add_final_layer_norm", False)
        refuse_unless(data, "normalize_embedding", True)
        refuse_unless(data, "static_position_embeddings", False)
        return TransformerConfig(
            **_FIXED,
            vocab_size=required(data, "vocab_size"),
            hidden_size=width,
            num_layers=required(data, "encoder_layers"),
            num_decoder_layers=required(data, "decoder_layers"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            ffn_size=ffn_size,
            max_length=data.get("max_position_embeddings", 1024),
            activation=read_activation(data.get("activation_function", "gelu")),
            embedding_scale=math.sqrt(width) if data.get("scale_embedding", False) else 1.0,
            hidden_dropout=data.get("dropout", 0.1),
            attention_dropout=data.get("attention_dropout", 0.0),
            tie_embeddings=data.get("tie_word_embeddings", True),
            initialisation="normal",
            initialisation_std=data.get("init_std", 0.02),
            special_ids=read_special_ids(data, data["vocab_size"]),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`."""
        return {
            "model_type": "bart",
            "architectures": [cls.architectures[0]],
            "is_encoder_decoder": True,
            "vocab_size": config.vocab_size,
            "d_model": config.hidden_size,
            "encoder_layers": config.num_layers,
            "decoder_layers": config.num_decoder_layers,
            "encoder_attention_heads": config.num_heads,
            "decoder_attention_heads": config.num_heads,
            "encoder_ffn_dim": config.ffn_size,
            "decoder_ffn_dim": config.ffn_size,
            "activation_function": write_activation(config.activation),
            "dropout": config.hidden_dropout,
            "attention_dropout": config.attention_dropout,
            "activation_dropout": 0.0,
            "max_position_embeddings": config.max_length,
            "init_std": config.std,
            "scale_embedding": config.embedding_scale != 1.0,
            "pad_token_id": config.special_ids.get("pad"),
            "bos_token_id": config.special_ids.get("bos"),
            "eos_token_id": config.special_ids.get("eos"),
            "decoder_start_token_id": config.special_ids.get("decoder_start"),
            # Their default is id 2, whatever token that is in this vocabulary.
            "forced_eos_token_id": None,
            "tie_word_embeddings": config.tie_embeddings,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
        # Told that the matrix is untied, transformers 5 unties the stacks' embeddings from each other too, and wants all three.
        copies = () if config.tie_embeddings else names
        table = [
            Weight(
                "trunk.encoder.embedding.token.weight", ("model.shared.weight",), copies=copies, aliases=names
            )
        ]
        for side, num_layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
            ours, theirs = f"trunk.{side}", f"model.{side}"
            table += [
                Weight(f"{ours}.embedding.position.weight", (f"{theirs}.embed_positions.weight",)),
                Weight(f"{ours}.embedding.norm.weight", (f"{theirs}.layernorm_embedding.weight",)),
                Weight(f"{ours}.embedding.norm.bias", (f"{theirs}.layernorm_embedding.bias",)),
            ]
            for i in range(num_layers):
                table += _layer(f"{ours}.layers.{i}", f"{theirs}.layers.{i}", side, config.hidden_size)
        if has_head:
            table.append(Weight("head.bias", ("final_logits_bias",), shape=(1, config.vocab_size)))
            if not config.tie_embeddings:
                table.append(Weight("head.weight", (cls.head_matrix,)))
        return table


def _layer(ours: str, theirs: str, side: str, width: int) -> list[Weight]:
    table: list[Weight] = []
    for kind in ("weight", "bias"):
        parts = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
        table += [
            Weight(f"{ours}.attention.qkv.{kind}", parts, rows=(width, width, width)),
            Weight(f"{ours}.attention.output.{kind}", (f"{theirs}.self_attn.out_proj.{kind}",)),
            Weight(f"{ours}.attention_norm.{kind}", (f"{theirs}.self_attn_layer_norm.{kind}",)),
            Weight(f"{ours}.feed_forward.input.{kind}", (f"{theirs}.fc1.{kind}",)),
            Weight(f"{ours}.feed_forward.output.{kind}", (f"{theirs}.fc2.{kind}",)),
            Weight(f"{ours}.feed_forward_norm.{kind}", (f"{theirs}.final_layer_norm.{kind}",)),
        ]
        if side == "decoder":
            cross = f"{theirs}.encoder_attn"
            table += [
                Weight(f"{ours}.cross_attention.query.{kind}", (f"{cross}.q_proj.{kind}",)),
                Weight(
                    f"{ours}.cross_attention.key_value.{kind}",
                    (f"{cross}.k_proj.{kind}", f"{cross}.v_proj.{kind}"),
                    rows=(width, width),
                ),
                Weight(f"{ours}.cross_attention.output.{kind}", (f"{cross}.out_proj.{kind}",)),
                Weight(f"{ours}.cross_attention_norm.{kind}", (f"{cross}_layer_norm.{kind}",)),
            ]
    return table
