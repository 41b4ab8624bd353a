"""RoBERTa: BERT's block, positions counted from the padding id on, one sentence mark (1907.11692)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from seedbed.errors import IncompatibleError
from seedbed.models.bert_style import (
    BertStyleConfig,
    embedding_weights,
    head_weights,
    layer_weights,
    read_keys,
    write_keys,
)
from seedbed.models.config import TransformerConfig
from seedbed.models.translate import ClassifierForm, Weight, required

__all__ = ["RobertaConfig"]

_USUAL_PAD = 1


class RobertaConfig(BertStyleConfig):
    """BERT as RoBERTa stores it. The differences are in training: no sentence pairs, fresh masks, more text."""

    architectures: ClassVar[tuple[str, str]] = ("RobertaForMaskedLM", "RobertaModel")
    prefix: ClassVar[str] = "roberta."
    roots: ClassVar[tuple[str, ...]] = ("embeddings", "encoder", "pooler")
    head_matrix: ClassVar[str] = "lm_head.decoder.weight"
    harmless: ClassVar[dict[str, str]] = {
        r"roberta\.embeddings\.(position|token_type)_ids": "constant ids, not weights",
        r"roberta\.pooler\.dense\.(weight|bias)": "the pooler; hidden states do not pass it",
    }

    classifier: ClassVar[ClassifierForm | None] = ClassifierForm(
        "RobertaForSequenceClassification", ("first",), output="classifier.out_proj", dense="classifier.dense"
    )

    name: Literal["roberta"] = Field("roberta", description="RoBERTa: BERT's block without sentence marks.")
    type_vocab_size: int = Field(
        1, ge=1, description="Sentence marks; 1 as published. 2 for objectives on sentence pairs."
    )

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary; its positions begin after the id of padding, 1 where it has none."""
        return self._describe(
            vocab_size,
            special_ids,
            type_vocab_size=self.type_vocab_size,
            position_offset=(special_ids or {}).get("pad", _USUAL_PAD) + 1,
            norm_eps=1e-5,
        )

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Translate a `config.json`; the transform of its head has the erf form of GELU, whatever the blocks have."""
        keys = read_keys(data)
        offset = required({"pad_token_id": _USUAL_PAD, **data}, "pad_token_id") + 1
        keys["max_length"] -= offset
        return TransformerConfig(**keys, family="roberta", position_offset=offset, head_activation="gelu")

    @classmethod
    def to_huggingface(cls, config: TransformerConfig) -> dict[str, Any]:
        """Translate to a `config.json`.

        Raises:
            IncompatibleError: positions do not begin right after the id of padding, from which `transformers` counts them.
        """
        pad = config.special_ids.get("pad", config.position_offset - 1)
        if pad != config.position_offset - 1 or pad < 0:
            raise IncompatibleError(
                f"the family roberta cannot express position_offset={config.position_offset} with padding of id {pad}.",
                hint=f"position_offset must be the id of padding plus 1, {pad + 1}",
            )
        length = config.max_length + config.position_offset
        return {**write_keys(config, cls), "pad_token_id": pad, "max_position_embeddings": length}

    @classmethod
    def weights(cls, config: TransformerConfig, *, has_head: bool) -> list[Weight]:
        """Return the map between our weights and theirs."""
        table = embedding_weights("roberta.embeddings")
        for i in range(config.num_layers):
            table += layer_weights(config, i, f"roberta.encoder.layer.{i}")
        if has_head:
            table += head_weights(
                config,
                cls.head_matrix,
                transform="lm_head.dense",
                norm="lm_head.layer_norm",
                bias="lm_head.decoder.bias",
                bias_copies=("lm_head.bias",),
            )
        return table
