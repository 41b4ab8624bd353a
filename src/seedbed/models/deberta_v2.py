"""DeBERTa-v2 and v3: disentangled attention (2006.03654, 2111.09543)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.errors import IncompatibleError
from seedbed.models.config import TransformerConfig
from seedbed.models.presets import POST_NORM_OPTIMIZER, FamilyConfig
from seedbed.models.translate import (
    ClassifierForm,
    Weight,
    read_activation,
    read_special_ids,
    refuse_unless,
    required,
    write_activation,
)

__all__ = ["DebertaV2Config"]

_FIXED: dict[str, Any] = {
    "family": "deberta_v2",
    "attention_kind": "disentangled",
    "norm": "layer",
    "norm_place": "post",
    "norm_bias": True,
    "has_embedding_norm": True,
    "has_final_norm": False,
    "attention_bias": True,
    "ffn_bias": True,
    "head_transform": True,
    "head_transform_bias": True,
    "head_bias": True,
}


class DebertaV2Config(FamilyConfig):
    """The strongest classic encoder on understanding tasks; its attention costs about three products where others need one."""

    model_type: ClassVar[str] = "deberta-v2"
    optimizer: ClassVar[Mapping[str, Any]] = POST_NORM_OPTIMIZER
    architectures: ClassVar[tuple[str, str]] = ("DebertaV2ForMaskedLM", "DebertaV2Model")
    prefix: ClassVar[str] = "deberta."
    roots: ClassVar[tuple[str, ...]] = ("embeddings", "encoder")
    head_matrix: ClassVar[str] = "cls.predictions.decoder.weight"
    renamed: ClassVar[dict[str, str]] = {
        r"lm_predictions\.lm_head\.(dense|LayerNorm)\.": r"cls.predictions.transform.\1.",
        r"lm_predictions\.lm_head\.bias": "cls.predictions.bias",
    }
    harmless: ClassVar[dict[str, str]] = {
        r"deberta\.embeddings\.position_ids": "constant ids, not weights",
        r"deberta\.embeddings\.position_embeddings\.weight": "absolute positions of the enhanced mask decoder",
        r"mask_predictions\..*": "the head of replaced-token detection",
        r"pooler\.dense\.(weight|bias)": "the pooler; hidden states do not pass it",
    }

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "DebertaV2ForSequenceClassification",
        ("first",),
        output="classifier",
        dense="pooler.dense",
        activation="gelu",
    )

    name: Literal["deberta_v2"] = Field(
        "deberta_v2", description="DeBERTa-v2 and v3: disentangled attention, post-norm."
    )
    type_vocab_size: int = Field(
        0, ge=0, description="Sentence marks (A/B); 0: none, as the released models."
    )
    position_buckets: int = Field(
        256, ge=0, description="Buckets of distances to each side, the far half logarithmic. 0: no buckets."
    )
    position_biased_input: bool = Field(
        False, description="Add learned absolute positions to the embeddings, as BERT."
    )
    share_position_projections: bool = Field(
        True, description="Project distances by the matrices of the content (v3), not by their own."
    )

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        shape = self.shape()
        return TransformerConfig(
            **self._common(vocab_size, special_ids),
            **_FIXED,
            ffn_size=self.ffn_size or 4 * shape.hidden_size,
            type_vocab_size=self.type_vocab_size,
            positions="learned" if self.position_biased_input else "none",
            position_buckets=self.position_buckets,
            # As v3 has it at 512; so rows may be made longer later, whatever they were trained at.
            max_distance=max(self.max_length, 2 * self.position_buckets),
            content_to_position=True,
            position_to_content=True,
            share_position_projections=self.share_position_projections,
            distance_norm=True,
            norm_eps=1e-7,
            activation="gelu",
            head_activation="gelu",
            initialisation=self.initialisation or "normal",
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`. Both forms of the masked-LM head are one here; see `to_huggingface`."""
        refuse_unless(data, "relative_attention", True)
        refuse_unless(data, "conv_kernel_size", 0)
        width, heads = required(data, "hidden_size"), required(data, "num_attention_heads")
        refuse_unless(data, "embedding_size", width)
        refuse_unless(data, "attention_head_size", width // heads)
        norms = [part.strip() for part in data.get("norm_rel_ebd", "none").lower().split("|")]
        terms = data.get("pos_att_type") or []
        terms = [part.strip() for part in terms.lower().split("|")] if isinstance(terms, str) else terms
        if not terms or not set(terms) <= {"c2p", "p2c"}:
            raise IncompatibleError(
                f"config.json has pos_att_type = {terms!r}; c2p, p2c or both can be read."
            )
        max_length = data.get("max_position_embeddings", 512)
        max_distance = data.get("max_relative_positions", -1)
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
            max_length=max_length,
            type_vocab_size=data.get("type_vocab_size", 0),
            positions="learned" if data.get("position_biased_input", True) else "none",
            position_buckets=max(0, data.get("position_buckets", -1)),
            max_distance=max_distance if max_distance > 0 else max_length,
            content_to_position="c2p" in terms,
            position_to_content="p2c" in terms,
            share_position_projections=data.get("share_att_key", False),
            distance_norm="layer_norm" in norms,
            norm_eps=data.get("layer_norm_eps", 1e-7),
            activation=activation,
            head_activation=activation,
            hidden_dropout=data.get("hidden_dropout_prob", 0.1),
            attention_dropout=data.get("attention_probs_dropout_prob", 0.1),
            # The newer form of their head reads the embedding itself.
            tie_embeddings=data.get("tie_word_embeddings", True) or not data.get("legacy", True),
            initialisation="normal",
            initialisation_std=data.get("initializer_range", 0.02),
            special_ids=read_special_ids(data, data["vocab_size"]),
        )

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`.

        The masked-LM head is written in the form `transformers` calls legacy (`cls.predictions`): it is what `AutoModel`
        expects where a config says nothing, and the only one that can be untied. Both compute the same.
        """
        return {
            "model_type": "deberta-v2",
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
            "relative_attention": True,
            "position_buckets": config.position_buckets or -1,
            "max_relative_positions": config.max_distance,
            "pos_att_type": ["p2c"] * config.position_to_content + ["c2p"] * config.content_to_position,
            "position_biased_input": config.positions == "learned",
            "share_att_key": config.share_position_projections,
            "norm_rel_ebd": "layer_norm" if config.distance_norm else "none",
            "legacy": True,
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
        width = config.hidden_size
        kinds = ("weight", "bias")
        table = [Weight("trunk.embedding.token.weight", ("deberta.embeddings.word_embeddings.weight",))]
        for ours, theirs, exists in (
            (
                "embedding.position.weight",
                "embeddings.position_embeddings.weight",
                config.positions == "learned",
            ),
            (
                "embedding.token_type.weight",
                "embeddings.token_type_embeddings.weight",
                config.type_vocab_size,
            ),
            ("embedding.norm.weight", "embeddings.LayerNorm.weight", True),
            ("embedding.norm.bias", "embeddings.LayerNorm.bias", True),
            ("distance_embedding.weight", "encoder.rel_embeddings.weight", True),
            ("distance_norm.weight", "encoder.LayerNorm.weight", config.distance_norm),
            ("distance_norm.bias", "encoder.LayerNorm.bias", config.distance_norm),
        ):
            if exists:
                table.append(Weight(f"trunk.{ours}", (f"deberta.{theirs}",)))
        for i in range(config.num_layers):
            ours, theirs = f"trunk.layers.{i}", f"deberta.encoder.layer.{i}"
            attention = f"{theirs}.attention.self"
            for kind in kinds:
                parts = tuple(f"{attention}.{part}_proj.{kind}" for part in ("query", "key", "value"))
                table += [
                    Weight(f"{ours}.attention.qkv.{kind}", parts, rows=(width, width, width)),
                    Weight(f"{ours}.attention.output.{kind}", (f"{theirs}.attention.output.dense.{kind}",)),
                    Weight(f"{ours}.attention_norm.{kind}", (f"{theirs}.attention.output.LayerNorm.{kind}",)),
                    Weight(f"{ours}.feed_forward.input.{kind}", (f"{theirs}.intermediate.dense.{kind}",)),
                    Weight(f"{ours}.feed_forward.output.{kind}", (f"{theirs}.output.dense.{kind}",)),
                    Weight(f"{ours}.feed_forward_norm.{kind}", (f"{theirs}.output.LayerNorm.{kind}",)),
                ]
                if not config.share_position_projections:
                    own = {"key": config.content_to_position, "query": config.position_to_content}
                    table += [
                        Weight(
                            f"{ours}.attention.position_{part}.{kind}",
                            (f"{attention}.pos_{part}_proj.{kind}",),
                        )
                        for part, exists in own.items()
                        if exists
                    ]
        if has_head:
            for kind in kinds:
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
