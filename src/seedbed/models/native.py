"""The best known block for little text and little compute, with no other library's form (docs/models.md, "The native block").

Each part is a field of `TransformerConfig` that says where it comes from; which of them a family takes is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.config import Stack, TransformerConfig
from seedbed.models.presets import FamilyConfig, gated_size

__all__ = ["NativeDecoderConfig", "NativeEncoderConfig"]


class _NativeConfig(FamilyConfig):
    """What the two native families share. A switch that is null follows `many_passes`."""

    is_causal: ClassVar[bool]

    many_passes: bool | None = Field(
        None,
        description="The text is read more than about four times: gated feed-forward, a norm before the output projections,"
        " a gate per head, output projections that start random. null: as the run turns out to read it.",
    )
    positions: Literal["rope", "alibi", "sinusoidal", "learned", "none"] = Field(
        "rope", description="How order enters: rope, alibi, sinusoidal, learned or none."
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary wavelengths.")
    num_kv_heads: int | None = Field(
        None, ge=1, description="Key and value heads, shared by groups of queries. null: num_heads."
    )
    is_gated: bool | None = Field(
        None,
        description="SwiGLU of width 8/3 D instead of squared ReLU of width 4 D. null: follows many_passes.",
    )
    inner_norm: bool | None = Field(
        None, description="Norm before the two output projections of a layer. null: follows many_passes."
    )
    attention_gate: bool | None = Field(
        None, description="A learned gate per attention head. null: follows many_passes."
    )
    zero_outputs: bool | None = Field(
        None, description="Output projections start at 0. null: the opposite of many_passes."
    )
    query_key_norm: bool = Field(True, description="Norm of each head's queries and keys.")
    residual_scalars: bool = Field(
        True, description="Learned weights of the stream and of its start, per layer."
    )
    value_residual: bool = Field(True, description="Mix the first layer's values into the later layers'.")
    logit_softcap: float = Field(0.0, ge=0, description="Hold logits within +-c. 0: as they are.")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        shape = self.shape()
        many = bool(self.many_passes)
        is_gated = many if self.is_gated is None else self.is_gated
        zero_outputs = not many if self.zero_outputs is None else self.zero_outputs
        width = shape.hidden_size
        values: dict[str, Any] = {
            **self._common(vocab_size, special_ids),
            "num_kv_heads": self.num_kv_heads or shape.num_heads,
            "family": self.name,
            "norm": "rms",
            "norm_scale": False,
            # So small that it changes nothing but a vector of zeros: embeddings may start far below 1.
            "norm_eps": 1e-8,
            "has_embedding_norm": True,
            "inner_norm": many if self.inner_norm is None else self.inner_norm,
            "residual_scalars": self.residual_scalars,
            "value_residual": self.value_residual,
            "positions": self.positions,
            "rope_theta": self.rope_theta,
            "query_key_norm": self.query_key_norm,
            "attention_gate": many if self.attention_gate is None else self.attention_gate,
            "activation": "silu" if is_gated else "relu_squared",
            "is_gated": is_gated,
            "ffn_size": self.ffn_size or (gated_size(width) if is_gated else 4 * width),
            "is_causal": self.is_causal,
            "logit_softcap": self.logit_softcap,
            # Zeroed outputs and a tied head: what a token is given back at the start is itself, at a logit of std * D. At 4 / D
            # that is 4, and a new model about as uncertain as the uniform one; the norm behind takes the scale out. After 100
            # steps of the tiny encoder 4 / D is 0.23 nats below 1 / D (docs/log.md).
            "embedding_std": 4 / width if self.tie_embeddings else None,
            "initialisation": self.initialisation or ("scaled_residual" if not zero_outputs else "normal"),
            "zero_outputs": zero_outputs,
        }
        return TransformerConfig(**values)


class NativeEncoderConfig(_NativeConfig):
    """The native block for masked prediction."""

    is_causal: ClassVar[bool] = False
    native_reason: ClassVar[str] = (
        "no family there has its norms without weights, residual scalars and mixed values"
    )
    nearest: ClassVar[str] = "modernbert"

    name: Literal["native_encoder"] = Field(
        "native_encoder",
        description="Seedbed's own encoder: the best known block for short runs; not exportable.",
    )


class NativeDecoderConfig(_NativeConfig):
    """The native block for prediction from left to right."""

    stack: ClassVar[Stack] = "decoder"
    is_causal: ClassVar[bool] = True
    native_reason: ClassVar[str] = (
        "no family there has its norms without weights, residual scalars and mixed values"
    )
    nearest: ClassVar[str] = "llama"

    name: Literal["native_decoder"] = Field(
        "native_decoder",
        description="Seedbed's own decoder: the best known block for short runs; not exportable.",
    )
    logit_softcap: float = Field(15.0, ge=0, description="Hold logits within +-c. 0: as they are.")
