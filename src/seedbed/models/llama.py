"""Llama: pre-norm RMSNorm, rotary positions, SwiGLU, no offsets, grouped queries (2302.13971, 2305.13245)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.config import Stack, TransformerConfig
from seedbed.models.presets import FamilyConfig, gated_size
from seedbed.models.translate import (
    ClassifierForm,
    Weight,
    read_activation,
    read_rope_scale,
    read_special_ids,
    refuse_unless,
    required,
    write_activation,
    write_rope,
)

__all__ = ["LlamaConfig"]

_FIXED: dict[str, Any] = {
    "family": "llama",
    "norm": "rms",
    "norm_place": "pre",
    "has_final_norm": True,
    "positions": "rope",
    "is_gated": True,
    "is_causal": True,
}


class LlamaConfig(FamilyConfig):
    """The modern decoder, and the default one."""

    stack: ClassVar[Stack] = "decoder"
    architectures: ClassVar[tuple[str, str]] = ("LlamaForCausalLM", "LlamaModel")
    prefix: ClassVar[str] = "model."
    roots: ClassVar[tuple[str, ...]] = ("embed_tokens", "layers", "norm")
    head_matrix: ClassVar[str] = "lm_head.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "rotary frequencies, computed anew",
    }

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "LlamaForSequenceClassification", ("last",), output="score", output_bias=False
    )

    name: Literal["llama"] = Field(
        "llama", description="Llama: pre-norm, rotary positions, SwiGLU, no biases."
    )
    num_kv_heads: int | None = Field(
        None, ge=1, description="Key and value heads, shared by groups of queries. null: num_heads."
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary wavelengths.")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        shape = self.shape()
        common = self._common(vocab_size, special_ids)
        return TransformerConfig(
            **{**common, "num_kv_heads": self.num_kv_heads or shape.num_heads},
            **_FIXED,
            ffn_size=self.ffn_size or gated_size(shape.hidden_size),
            norm_eps=1e-6,
            activation="silu",
            rope_theta=self.rope_theta,
            initialisation=self.initialisation or "scaled_residual",
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`, with `rope_parameters` (transformers 5) or `rope_theta` (4)."""
        rope = data.get("rope_parameters") or {}
        scaling = data.get("rope_scaling") or {}
        scale = read_rope_scale(rope or scaling)
        if scaling and read_rope_scale(scaling) != scale:
            refuse_unless(data, "rope_scaling", None)
        width, heads = required(data, "hidden_size"), required(data, "num_attention_heads")
        return TransformerConfig(
            **_FIXED,
            vocab_size=required(data, "vocab_size"),
            hidden_size=width,
            num_layers=required(data, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=data.get("num_key_value_heads") or heads,
            head_dim=data.get("head_dim") or width // heads,
            ffn_size=required(data, "intermediate_size"),
            max_length=data.get("max_position_embeddings", 2048),
            norm_eps=data.get("rms_norm_eps", 1e-6),
            rope_scale=scale,
            rope_theta=rope.get("rope_theta", data.get("rope_theta", 10_000.0)),
            activation=read_activation(data.get("hidden_act", "silu")),
            attention_bias=data.get("attention_bias", False),
            ffn_bias=data.get("mlp_bias", False),
            attention_dropout=data.get("attention_dropout", 0.0),
            tie_embeddings=data.get("tie_word_embeddings", False),
            initialisation="scaled_residual",
            initialisation_std=data.get("initializer_range", 0.02),
            special_ids=read_special_ids(data, data["vocab_size"]),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`. `rope_theta` (and a scale) is there twice, for transformers 4 and 5."""
        return {
            "model_type": "llama",
            "architectures": [cls.architectures[0]],
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "intermediate_size": config.ffn_size,
            "hidden_act": write_activation(config.activation),
            "max_position_embeddings": config.max_length,
            "initializer_range": config.std,
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            "rope_parameters": write_rope(config),
            **({"rope_scaling": write_rope(config)} if config.rope_scale != 1.0 else {}),
            "attention_bias": config.attention_bias,
            "attention_dropout": config.attention_dropout,
            "mlp_bias": config.ffn_bias,
            "bos_token_id": config.special_ids.get("bos"),
            "eos_token_id": config.special_ids.get("eos"),
            "pad_token_id": config.special_ids.get("pad"),
            "tie_word_embeddings": config.tie_embeddings,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        queries, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attention = ("weight", "bias") if config.attention_bias else ("weight",)
        ffn = ("weight", "bias") if config.ffn_bias else ("weight",)
        table = [Weight("trunk.embedding.token.weight", ("model.embed_tokens.weight",))]
        for i in range(config.num_layers):
            ours, theirs = f"trunk.layers.{i}", f"model.layers.{i}"
            table += [
                Weight(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",)),
                Weight(f"{ours}.feed_forward_norm.weight", (f"{theirs}.post_attention_layernorm.weight",)),
            ]
            for kind in attention:
                parts = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
                table += [
                    Weight(f"{ours}.attention.qkv.{kind}", parts, rows=(queries, groups, groups)),
                    Weight(f"{ours}.attention.output.{kind}", (f"{theirs}.self_attn.o_proj.{kind}",)),
                ]
            for kind in ffn:
                parts = tuple(f"{theirs}.mlp.{part}_proj.{kind}" for part in ("gate", "up"))
                table += [
                    Weight(f"{ours}.feed_forward.input.{kind}", parts, rows=(config.ffn_size,) * 2),
                    Weight(f"{ours}.feed_forward.output.{kind}", (f"{theirs}.mlp.down_proj.{kind}",)),
                ]
        table.append(Weight("trunk.final_norm.weight", ("model.norm.weight",)))
        if has_head and not config.tie_embeddings:
            table.append(Weight("head.weight", (cls.head_matrix,)))
        return table
