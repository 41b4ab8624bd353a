"""GPT-2: pre-norm, learned positions, tanh-GELU, causal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.config import Stack, TransformerConfig
from seedbed.models.presets import FamilyConfig
from seedbed.models.translate import (
    ClassifierForm,
    Weight,
    read_activation,
    read_special_ids,
    refuse_unless,
    required,
    write_activation,
)

__all__ = ["GPT2Config"]

_FIXED: dict[str, Any] = {
    "family": "gpt2",
    "norm": "layer",
    "norm_place": "pre",
    "norm_bias": True,
    "has_final_norm": True,
    "positions": "learned",
    "attention_bias": True,
    "ffn_bias": True,
    "is_causal": True,
}


class GPT2Config(FamilyConfig):
    """The classic decoder."""

    stack: ClassVar[Stack] = "decoder"
    architectures: ClassVar[tuple[str, str]] = ("GPT2LMHeadModel", "GPT2Model")
    prefix: ClassVar[str] = "transformer."
    roots: ClassVar[tuple[str, ...]] = ("wte", "wpe", "h", "ln_f")
    head_matrix: ClassVar[str] = "lm_head.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"transformer\.h\.\d+\.attn\.(bias|masked_bias)": "the causal mask, not a weight",
    }

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "GPT2ForSequenceClassification", ("last",), output="score", output_bias=False
    )

    name: Literal["gpt2"] = Field("gpt2", description="GPT-2: pre-norm, learned positions, GELU.")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary.

        The activation is erf-GELU, not GPT-2's tanh approximation of it: three times as fast on a CPU, and `config.json`
        says which it is, so the export is exact all the same.
        """
        shape = self.shape()
        return TransformerConfig(
            **self._common(vocab_size, special_ids),
            **_FIXED,
            ffn_size=self.ffn_size or 4 * shape.hidden_size,
            norm_eps=1e-5,
            activation="gelu",
            initialisation=self.initialisation or "scaled_residual",
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`."""
        refuse_unless(data, "scale_attn_weights", True)
        refuse_unless(data, "scale_attn_by_inverse_layer_idx", False)
        refuse_unless(data, "add_cross_attention", False)
        width, heads = required(data, "n_embd"), required(data, "n_head")
        return TransformerConfig(
            **_FIXED,
            vocab_size=required(data, "vocab_size"),
            hidden_size=width,
            num_layers=required(data, "n_layer"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            ffn_size=data.get("n_inner") or 4 * width,
            max_length=data.get("n_positions", 1024),
            norm_eps=data.get("layer_norm_epsilon", 1e-5),
            activation=read_activation(data.get("activation_function", "gelu_new")),
            hidden_dropout=data.get("resid_pdrop", 0.1),
            attention_dropout=data.get("attn_pdrop", 0.1),
            tie_embeddings=data.get("tie_word_embeddings", True),
            initialisation="scaled_residual",
            initialisation_std=data.get("initializer_range", 0.02),
            special_ids=read_special_ids(data, data["vocab_size"]),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`."""
        return {
            "model_type": "gpt2",
            "architectures": [cls.architectures[0]],
            "vocab_size": config.vocab_size,
            "n_positions": config.max_length,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.ffn_size,
            "activation_function": write_activation(config.activation),
            "resid_pdrop": config.hidden_dropout,
            "embd_pdrop": config.hidden_dropout,
            "attn_pdrop": config.attention_dropout,
            "layer_norm_epsilon": config.norm_eps,
            "initializer_range": config.std,
            "scale_attn_weights": True,
            "bos_token_id": config.special_ids.get("bos"),
            "eos_token_id": config.special_ids.get("eos"),
            "pad_token_id": config.special_ids.get("pad"),
            "tie_word_embeddings": config.tie_embeddings,
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs; their matrices are stored (in, out)."""
        table = [
            Weight("trunk.embedding.token.weight", ("transformer.wte.weight",)),
            Weight("trunk.embedding.position.weight", ("transformer.wpe.weight",)),
        ]
        for i in range(config.num_layers):
            ours, theirs = f"trunk.layers.{i}", f"transformer.h.{i}"
            for kind in ("weight", "bias"):
                turned = kind == "weight"
                table += [
                    Weight(f"{ours}.attention_norm.{kind}", (f"{theirs}.ln_1.{kind}",)),
                    Weight(
                        f"{ours}.attention.qkv.{kind}",
                        (f"{theirs}.attn.c_attn.{kind}",),
                        is_transposed=turned,
                    ),
                    Weight(
                        f"{ours}.attention.output.{kind}",
                        (f"{theirs}.attn.c_proj.{kind}",),
                        is_transposed=turned,
                    ),
                    Weight(f"{ours}.feed_forward_norm.{kind}", (f"{theirs}.ln_2.{kind}",)),
                    Weight(
                        f"{ours}.feed_forward.input.{kind}",
                        (f"{theirs}.mlp.c_fc.{kind}",),
                        is_transposed=turned,
                    ),
                    Weight(
                        f"{ours}.feed_forward.output.{kind}",
                        (f"{theirs}.mlp.c_proj.{kind}",),
                        is_transposed=turned,
                    ),
                ]
        table += [
            Weight(f"trunk.final_norm.{kind}", (f"transformer.ln_f.{kind}",)) for kind in ("weight", "bias")
        ]
        if has_head and not config.tie_embeddings:
            table.append(Weight("head.weight", (cls.head_matrix,)))
        return table
