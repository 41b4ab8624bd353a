"""BERT: post-norm, learned positions, sentence marks (1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.models.bert_style import (
    BertStyleConfig,
    dense,
    embedding_weights,
    head_weights,
    layer_weights,
    read_keys,
    write_keys,
)
from seedbed.models.config import TransformerConfig
from seedbed.models.translate import ClassifierForm, ExtraHead, Weight

__all__ = ["BertConfig"]


class BertConfig(BertStyleConfig):
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

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "BertForSequenceClassification", ("first",), output="classifier", dense="bert.pooler.dense"
    )

    name: Literal["bert"] = Field("bert", description="BERT: post-norm, learned positions, GELU.")
    type_vocab_size: int = Field(2, ge=1, description="Sentence marks (A/B).")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        return self._describe(vocab_size, special_ids, type_vocab_size=self.type_vocab_size)

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`."""
        keys = read_keys(data)
        return TransformerConfig(**keys, family="bert", head_activation=keys["activation"])

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`."""
        return write_keys(config, cls)

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        table = embedding_weights("bert.embeddings")
        for i in range(config.num_layers):
            table += layer_weights(config, i, f"bert.encoder.layer.{i}")
        if has_head:
            table += head_weights(
                config,
                cls.head_matrix,
                transform="cls.predictions.transform.dense",
                norm="cls.predictions.transform.LayerNorm",
                bias="cls.predictions.decoder.bias",
                bias_copies=("cls.predictions.bias",),
            )
        return table

    @classmethod
    def extra_heads(cls, *, has_head: bool) -> dict[str, ExtraHead]:
        """Return the place of the next-sentence head."""
        name = "extras.sentence_pair"
        weights = dense(f"{name}.pooler.dense", "bert.pooler.dense")
        weights += dense(f"{name}.classifier", "cls.seq_relationship")
        kind = "BertForPreTraining" if has_head else "BertForNextSentencePrediction"
        return {"sentence_pair": ExtraHead(kind, weights)}
