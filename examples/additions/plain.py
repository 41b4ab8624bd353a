"""Plain: a decoder with sinusoidal positions and ReLU, as in 2017. An example of an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from seedbed.models.config import Stack, TransformerConfig
from seedbed.models.presets import FamilyConfig

__all__ = ["PlainConfig"]


class PlainConfig(FamilyConfig):
    """The decoder of "Attention Is All You Need" (1706.03762) alone."""

    stack: ClassVar[Stack] = "decoder"
    native_reason: ClassVar[str] = "no family there is this one"

    name: Literal["plain"] = Field("plain", description="A plain decoder, an example.")

    def build(self, *, vocab_size: int, special_ids: Mapping[str, int] | None = None) -> TransformerConfig:
        """Return the full description for a vocabulary."""
        return TransformerConfig(
            **self._common(vocab_size, special_ids),
            family="plain",
            ffn_size=self.ffn_size or 4 * self.shape().hidden_size,
            positions="sinusoidal",
            activation="relu",
            norm_place="post",
            has_final_norm=False,
            is_causal=True,
        )
