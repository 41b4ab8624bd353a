"""T5: an encoder-decoder with relative position buckets, RMSNorm and no offsets (1910.10683; v1.1: 2002.05202)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.errors import IncompatibleError
from seedbed.models.config import Activation, Stack, TransformerConfig
from seedbed.models.presets import FamilyConfig, gated_size
from seedbed.models.translate import (
    Weight,
    read_activation,
    read_special_ids,
    refuse_unless,
    required,
    write_activation,
)

__all__ = ["T5Config"]

_FIXED: dict[str, Any] = {
    "family": "t5",
    "norm": "rms",
    "norm_place": "pre",
    "has_final_norm": True,
    "positions": "relative",
    "attention_scale": 1.0,
    "initialisation": "t5",
}


class T5Config(FamilyConfig):
    """The encoder-decoder made for "text in, text out", in the form of its version 1.1."""

    # The untied output matrix has no offset, so how frequent each token is has to be learned by the matrix itself: slow at the
    # rate of the others (docs/log.md). Tied, it is no parameter of its own.
    optimizer: ClassVar[Mapping[str, Any]] = {
        "name": "adafactor",
        "learning_rate": 2e-2,
        "rules": [{"pattern": "head*", "rate_scale": 4.0, "is_optional": True}],
    }
    architectures: ClassVar[tuple[str, str]] = ("T5ForConditionalGeneration", "T5Model")
    prefix: ClassVar[str] = ""
    roots: ClassVar[tuple[str, ...]] = ()
    head_matrix: ClassVar[str] = "lm_head.weight"
    stack: ClassVar[Stack] = "encoder_decoder"
    harmless: ClassVar[dict[str, str]] = {
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "never read, in no version",
    }

    name: Literal["t5"] = Field(
        "t5", description="T5: encoder-decoder, relative position buckets, RMSNorm, no biases."
    )
    num_layers: int | None = Field(
        None, ge=1, description="Layers of the encoder, and of the decoder. null: the preset's."
    )
    num_decoder_layers: int | None = Field(
        None, ge=1, description="Layers of the decoder. null: as many as the encoder's."
    )
    is_gated: bool = Field(
        True, description="Gated GELU of version 1.1; false: the ReLU of version 1.0, 4 x hidden_size wide."
    )
    tie_embeddings: bool = Field(
        False, description="Use the token embedding as the output matrix, as version 1.0; 1.1 does not."
    )
    relative_buckets: int = Field(32, ge=4, description="Buckets of relative positions.")
    relative_max_distance: int = Field(
        128, ge=1, description="Distance from which on all relative positions share a bucket, tokens."
    )

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary; a decoder begins with the pad token unless `decoder_start` is given."""
        shape = self.shape()
        width = shape.hidden_size
        ids = dict(special_ids or {})
        if "pad" in ids:
            ids.setdefault("decoder_start", ids["pad"])
        fixed = {**_FIXED, "initialisation": self.initialisation or "t5"}
        return TransformerConfig(
            **self._common(vocab_size, ids),
            **fixed,
            num_decoder_layers=self.num_decoder_layers or shape.num_layers,
            ffn_size=self.ffn_size or (gated_size(width) if self.is_gated else 4 * width),
            is_gated=self.is_gated,
            activation="gelu_tanh" if self.is_gated else "relu",
            norm_eps=1e-6,
            head_scale=width**-0.5 if self.tie_embeddings else 1.0,
            relative_buckets=self.relative_buckets,
            relative_max_distance=self.relative_max_distance,
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`.

        Versions 4 of `transformers` scale the decoder's output exactly when the matrix is tied; version 5 has a key for it,
        and calls every T5 tied whatever it stores.
        """
        refuse_unless(data, "is_encoder_decoder", True)
        width, heads = required(data, "d_model"), required(data, "num_heads")
        is_gated, activation = _read_projection(data.get("feed_forward_proj", "relu"))
        is_tied = data.get("tie_word_embeddings") is not False
        ids = read_special_ids(data, required(data, "vocab_size"))
        if "pad" in ids:
            ids.setdefault("decoder_start", ids["pad"])
        return TransformerConfig(
            **_FIXED,
            vocab_size=data["vocab_size"],
            hidden_size=width,
            num_layers=required(data, "num_layers"),
            num_decoder_layers=data.get("num_decoder_layers") or data["num_layers"],
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=required(data, "d_kv"),
            ffn_size=required(data, "d_ff"),
            max_length=data.get("n_positions", 512),
            norm_eps=data.get("layer_norm_epsilon", 1e-6),
            relative_buckets=data.get("relative_attention_num_buckets", 32),
            relative_max_distance=data.get("relative_attention_max_distance", 128),
            is_gated=is_gated,
            activation=activation,
            hidden_dropout=data.get("dropout_rate", 0.1),
            attention_dropout=data.get("dropout_rate", 0.1),
            tie_embeddings=is_tied,
            head_scale=width**-0.5 if data.get("scale_decoder_outputs", is_tied) else 1.0,
            special_ids=ids,
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`. `n_positions` is a note of ours: T5 reads rows of any length."""
        return {
            "model_type": "t5",
            "architectures": [cls.architectures[0]],
            "is_encoder_decoder": True,
            "vocab_size": config.vocab_size,
            "d_model": config.hidden_size,
            "d_kv": config.head_dim,
            "d_ff": config.ffn_size,
            "num_layers": config.num_layers,
            "num_decoder_layers": config.num_decoder_layers,
            "num_heads": config.num_heads,
            "n_positions": config.max_length,
            "relative_attention_num_buckets": config.relative_buckets,
            "relative_attention_max_distance": config.relative_max_distance,
            "feed_forward_proj": _write_projection(config),
            "dropout_rate": config.hidden_dropout,
            "layer_norm_epsilon": config.norm_eps,
            "initializer_factor": 1.0,
            "tie_word_embeddings": config.tie_embeddings,
            "scale_decoder_outputs": config.head_scale != 1.0,
            "pad_token_id": config.special_ids.get("pad"),
            "eos_token_id": config.special_ids.get("eos"),
            "decoder_start_token_id": config.special_ids.get("decoder_start"),
        }

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        table = [Weight("trunk.encoder.embedding.token.weight", ("shared.weight",), aliases=copies)]
        for side, num_layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
            first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            table.append(Weight(f"trunk.{side}.relative.weight", (first,)))
            for i in range(num_layers):
                table += _layer(f"trunk.{side}.layers.{i}", f"{side}.block.{i}.layer", side, config)
            table.append(Weight(f"trunk.{side}.final_norm.weight", (f"{side}.final_layer_norm.weight",)))
        if has_head and not config.tie_embeddings:
            table.append(Weight("head.weight", (cls.head_matrix,)))
        return table


def _layer(ours: str, theirs: str, side: str, config: TransformerConfig) -> list[Weight]:
    width = config.num_heads * config.head_dim
    attention, last = f"{theirs}.0.SelfAttention", f"{theirs}.{2 if side == 'decoder' else 1}"
    table = [
        Weight(f"{ours}.attention_norm.weight", (f"{theirs}.0.layer_norm.weight",)),
        Weight(
            f"{ours}.attention.qkv.weight",
            tuple(f"{attention}.{part}.weight" for part in "qkv"),
            rows=(width, width, width),
        ),
        Weight(f"{ours}.attention.output.weight", (f"{attention}.o.weight",)),
    ]
    if side == "decoder":
        cross = f"{theirs}.1.EncDecAttention"
        table += [
            Weight(f"{ours}.cross_attention_norm.weight", (f"{theirs}.1.layer_norm.weight",)),
            Weight(f"{ours}.cross_attention.query.weight", (f"{cross}.q.weight",)),
            Weight(
                f"{ours}.cross_attention.key_value.weight",
                (f"{cross}.k.weight", f"{cross}.v.weight"),
                rows=(width, width),
            ),
            Weight(f"{ours}.cross_attention.output.weight", (f"{cross}.o.weight",)),
        ]
    inputs = ("wi_0", "wi_1") if config.is_gated else ("wi",)
    return [
        *table,
        Weight(f"{ours}.feed_forward_norm.weight", (f"{last}.layer_norm.weight",)),
        Weight(
            f"{ours}.feed_forward.input.weight",
            tuple(f"{last}.DenseReluDense.{part}.weight" for part in inputs),
            rows=(config.ffn_size,) * len(inputs),
        ),
        Weight(f"{ours}.feed_forward.output.weight", (f"{last}.DenseReluDense.wo.weight",)),
    ]


def _read_projection(name: str) -> tuple[bool, Activation]:
    """Return whether the block is gated, and its activation; "gated-gelu" means the tanh form, "gelu" the erf form."""
    kind, _, rest = name.rpartition("-")
    if kind not in ("", "gated"):
        raise IncompatibleError(f"config.json has feed_forward_proj = {name!r}, which is not known here.")
    return kind == "gated", "gelu_tanh" if name == "gated-gelu" else read_activation(rest)


def _write_projection(config: TransformerConfig) -> str:
    name = write_activation(config.activation)
    if not config.is_gated:
        return name
    # "gated-gelu" is taken by the tanh form, and the erf form has this other name.
    return {"gelu_tanh": "gated-gelu", "gelu": "gated-gelu_python"}.get(config.activation, f"gated-{name}")
