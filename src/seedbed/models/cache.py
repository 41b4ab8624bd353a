"""Keep keys and values of tokens already read, for decoding one token at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from seedbed.errors import MemoryLimitError
from seedbed.models.config import TransformerConfig

__all__ = ["Cache", "Memory"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Hold what a decoder reads of its encoder.

    Attributes:
        states: (B, T, D) final hidden states of the encoder.
        segment_ids: (B, T) int32 segments they belong to; 0 is padding.
    """

    states: Tensor
    segment_ids: Tensor


@dataclass(slots=True)
class Cache:
    """Hold what past tokens left behind, in storage allocated once.

    The one mutable value of a model: `forward` appends the batch's new tokens. Slots are shared by all rows, so rows of
    unequal length are padded on the left (segment 0).

    Attributes:
        keys, values: (L, B, G, S, K) for L layers, G key-value heads and S slots; keys are already rotated.
        segment_ids: (B, S) int32.
        position_ids: (B, S) int64, for scores that depend on distance.
        attend_order: (B, S) int32, used with attention "order".
        length: slots filled.
        memory: the encoder's output, once it has run; tokens of an encoder-decoder's cache are the decoder's.
        cross: keys and values (B, G, T, K) of `memory` by layer, made once.
    """

    keys: Tensor
    values: Tensor
    segment_ids: Tensor
    position_ids: Tensor
    attend_order: Tensor
    length: int = 0
    memory: Memory | None = None
    cross: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def allocate(
        cls,
        config: TransformerConfig,
        *,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Return an empty cache for rows of up to `max_length` tokens."""
        num_layers = config.num_decoder_layers or config.num_layers
        shape = (num_layers, batch_size, config.num_kv_heads, max_length, config.head_dim)
        marks = torch.zeros((2, batch_size, max_length), dtype=torch.int32, device=device)
        return cls(
            keys=torch.zeros(shape, dtype=dtype, device=device),
            values=torch.zeros(shape, dtype=dtype, device=device),
            segment_ids=marks[0],
            position_ids=torch.zeros((batch_size, max_length), dtype=torch.int64, device=device),
            attend_order=marks[1],
        )

    def reserve(self, segment_ids: Tensor, attend_order: Tensor | None) -> int:
        """Note the marks of new tokens (B, T) and return how many came before them.

        Raises:
            MemoryLimitError: the new tokens do not fit the slots allocated.
        """
        start, end = self.length, self.length + segment_ids.shape[1]
        if end > self.segment_ids.shape[1]:
            raise MemoryLimitError(
                f"{end} tokens do not fit a cache of {self.segment_ids.shape[1]}.",
                hint="allocate the cache for prompt and new tokens together",
            )
        self.segment_ids[:, start:end] = segment_ids
        if attend_order is not None:
            self.attend_order[:, start:end] = attend_order
        self.length = end
        return start

    def place(self, position_ids: Tensor) -> Tensor:
        """Note the positions (B or 1, T) of the tokens just reserved; return those of all so far, (B, S)."""
        self.position_ids[:, self.length - position_ids.shape[1] : self.length] = position_ids
        return self.position_ids[:, : self.length]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values (B, G, T, K) in the reserved slots; return all so far."""
        start = self.length - keys.shape[2]
        self.keys[layer, :, :, start : self.length] = keys
        self.values[layer, :, :, start : self.length] = values
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]
