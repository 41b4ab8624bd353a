"""ModernBERT: pre-norm, rotary positions, gated feed-forward, no offsets (2412.13663)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.errors import IncompatibleError
from seedbed.models.config import TransformerConfig
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

__all__ = ["ModernBertConfig"]

_FIXED: dict[str, Any] = {
    "family": "modernbert",
    "norm": "layer",
    "norm_place": "pre",
    "has_embedding_norm": True,
    "has_first_norm": False,
    "has_final_norm": True,
    "positions": "rope",
    "is_gated": True,
    "head_transform": True,
}


class ModernBertConfig(FamilyConfig):
    """The modern encoder, and the default: in short runs it learns far faster than the classic block."""

    architectures: ClassVar[tuple[str, str]] = ("ModernBertForMaskedLM", "ModernBertModel")
    prefix: ClassVar[str] = "model."
    roots: ClassVar[tuple[str, ...]] = ("embeddings", "layers", "final_norm")
    head_matrix: ClassVar[str] = "decoder.weight"
    harmless: ClassVar[dict[str, str]] = {}

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "ModernBertForSequenceClassification",
        ("first", "mean"),
        output="classifier",
        dense="head.dense",
        activation="head",
        norm="head.norm",
    )

    name: Literal["modernbert"] = Field(
        "modernbert", description="ModernBERT: pre-norm, rotary positions, GeGLU, no biases."
    )
    rope_theta: float = Field(
        10_000.0,
        gt=0,
        description="Base of the rotary wavelengths; 160000 in the original, for rows of 8192.",
    )
    local_window: int | None = Field(
        None, ge=0, description="Width of local attention, tokens; 0: none. null: 128 for base, none below."
    )
    global_every_n: int = Field(3, ge=1, description="With a local window, every n-th layer stays global.")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary.

        Presets below base attend globally in every layer: their rows are about as long as the window, so a window saves no
        work (short rows are computed as full products anyway) and only hides half the row from three layers of four.
        """
        shape = self.shape()
        window = self.local_window
        if window is None:
            window = 128 if self.preset == "base" else 0
        return TransformerConfig(
            **self._common(vocab_size, special_ids),
            **_FIXED,
            ffn_size=self.ffn_size or gated_size(shape.hidden_size),
            norm_eps=1e-5,
            activation="gelu",
            head_activation="gelu",
            head_bias=True,
            rope_theta=self.rope_theta,
            local_window=window,
            global_every_n=self.global_every_n if window else 1,
            initialisation=self.initialisation or "scaled_residual",
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`, of transformers 5 (`layer_types`, `rope_parameters`) or 4."""
        width, heads = required(data, "hidden_size"), required(data, "num_attention_heads")
        layers = required(data, "num_hidden_layers")
        every_n = _every_n(data, layers)
        thetas = data.get("rope_parameters") or {}
        refuse_unless(thetas.get("sliding_attention") or {}, "rope_type", "default")
        refuse_unless(data, "rope_scaling", None)
        full, local = thetas.get("full_attention") or {}, thetas.get("sliding_attention") or {}
        has_local = every_n > 1 and layers > 1
        return TransformerConfig(
            **_FIXED,
            vocab_size=required(data, "vocab_size"),
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            ffn_size=required(data, "intermediate_size"),
            max_length=data.get("max_position_embeddings", 8192),
            norm_eps=data.get("norm_eps", 1e-5),
            norm_bias=data.get("norm_bias", False),
            rope_scale=read_rope_scale(full),
            rope_theta=full.get("rope_theta", data.get("global_rope_theta", 160_000.0)),
            local_rope_theta=(
                local.get("rope_theta", data.get("local_rope_theta") or 10_000.0) if has_local else 10_000.0
            ),
            local_window=data.get("local_attention", 128) // 2 * 2 if has_local else 0,
            global_every_n=every_n if has_local else 1,
            activation=read_activation(data.get("hidden_activation", "gelu")),
            attention_bias=data.get("attention_bias", False),
            ffn_bias=data.get("mlp_bias", False),
            hidden_dropout=data.get("embedding_dropout", 0.0),
            attention_dropout=data.get("attention_dropout", 0.0),
            tie_embeddings=data.get("tie_word_embeddings", True),
            head_activation=read_activation(data.get("classifier_activation", "gelu")),
            head_transform_bias=data.get("classifier_bias", False),
            head_bias=data.get("decoder_bias", True),
            initialisation="scaled_residual",
            initialisation_std=data.get("initializer_range", 0.02),
            special_ids=read_special_ids(data, data["vocab_size"]),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`.

        Holds the names of transformers 4 too, which would otherwise fall back to local attention.
        """
        special = config.special_ids
        return {
            "model_type": "modernbert",
            "architectures": [cls.architectures[0]],
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.ffn_size,
            "hidden_activation": write_activation(config.activation),
            "max_position_embeddings": config.max_length,
            "initializer_range": config.std,
            "norm_eps": config.norm_eps,
            "norm_bias": config.norm_bias,
            "pad_token_id": special.get("pad"),
            "bos_token_id": special.get("bos", special.get("cls")),
            "eos_token_id": special.get("eos", special.get("sep")),
            "cls_token_id": special.get("cls"),
            "sep_token_id": special.get("sep"),
            "attention_bias": config.attention_bias,
            "attention_dropout": config.attention_dropout,
            "layer_types": [
                "sliding_attention" if config.is_local(i) else "full_attention"
                for i in range(config.num_layers)
            ],
            "rope_parameters": {
                "full_attention": write_rope(config),
                "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
            },
            "global_attn_every_n_layers": config.global_every_n,
            "global_rope_theta": config.rope_theta,
            "local_rope_theta": config.local_rope_theta,
            "local_attention": config.local_window or 128,
            "embedding_dropout": config.hidden_dropout,
            "mlp_bias": config.ffn_bias,
            "mlp_dropout": config.hidden_dropout,
            "decoder_bias": config.head_bias,
            "classifier_bias": config.head_transform_bias,
            "classifier_activation": write_activation(config.head_activation),
            "tie_word_embeddings": config.tie_embeddings,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        norms = ("weight", "bias") if config.norm_bias else ("weight",)
        attention = ("weight", "bias") if config.attention_bias else ("weight",)
        ffn = ("weight", "bias") if config.ffn_bias else ("weight",)
        table = [Weight("trunk.embedding.token.weight", ("model.embeddings.tok_embeddings.weight",))]
        table += [
            Weight(f"trunk.embedding.norm.{kind}", (f"model.embeddings.norm.{kind}",)) for kind in norms
        ]
        for i in range(config.num_layers):
            ours, theirs = f"trunk.layers.{i}", f"model.layers.{i}"
            if i > 0:
                table += [Weight(f"{ours}.attention_norm.{k}", (f"{theirs}.attn_norm.{k}",)) for k in norms]
            for k in attention:
                table.append(Weight(f"{ours}.attention.qkv.{k}", (f"{theirs}.attn.Wqkv.{k}",)))
                table.append(Weight(f"{ours}.attention.output.{k}", (f"{theirs}.attn.Wo.{k}",)))
            table += [Weight(f"{ours}.feed_forward_norm.{k}", (f"{theirs}.mlp_norm.{k}",)) for k in norms]
            for k in ffn:
                table.append(Weight(f"{ours}.feed_forward.input.{k}", (f"{theirs}.mlp.Wi.{k}",)))
                table.append(Weight(f"{ours}.feed_forward.output.{k}", (f"{theirs}.mlp.Wo.{k}",)))
        table += [Weight(f"trunk.final_norm.{k}", (f"model.final_norm.{k}",)) for k in norms]
        if has_head:
            table += [Weight(f"head.norm.{k}", (f"head.norm.{k}",)) for k in norms]
            dense = ("weight", "bias") if config.head_transform_bias else ("weight",)
            table += [Weight(f"head.dense.{k}", (f"head.dense.{k}",)) for k in dense]
            if config.head_bias:
                table.append(Weight("head.bias", ("decoder.bias",)))
            if not config.tie_embeddings:
                table.append(Weight("head.weight", (cls.head_matrix,)))
        return table


def _every_n(data: Mapping[str, Any], layers: int) -> int:
    """Return n when layers 0, n, 2n, ... are global and the rest local; refuse any other pattern."""
    types = data.get("layer_types")
    if types is None:
        return int(data.get("global_attn_every_n_layers", 3))
    found = [kind == "full_attention" for kind in types]
    for n in range(1, layers + 1):
        if found == [i % n == 0 for i in range(layers)]:
            return n
    raise IncompatibleError(
        f"config.json has layer_types {types}; only a pattern with layers 0, n, 2n, ... global can be read.",
        hint="nothing was loaded, since its outputs would differ",
    )
