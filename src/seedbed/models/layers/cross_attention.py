"""Let a decoder read its encoder's output."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from seedbed.models.cache import Cache, Memory
from seedbed.models.config import TransformerConfig
from seedbed.models.layers.attention import AttentionPlan, mix
from seedbed.models.layers.dropout import Dropout

__all__ = ["CROSS_SITES", "CrossAttention", "Reading"]

CROSS_SITES = 1 << 18
"""Where the dropout sites of cross attention begin: two a layer, probabilities and output."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the decoder of a batch reads its encoder; made once and shared by the layers.

    Attributes:
        memory: what is read.
        plan: who reads what; no position enters.
        sees: (B, 1, S, 1), 0 for tokens without an encoder segment to read (padding): nothing is added to them. None: all read.
    """

    memory: Memory
    plan: AttentionPlan
    sees: Tensor | None = None


class CrossAttention(nn.Module):
    """Attend from the decoder (B, S, D) to the encoder's output (B, T, D), with keys and values of its own."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.attention_scale or config.head_dim**-0.5
        inner, bias = config.num_heads * config.head_dim, config.attention_bias
        self.query = nn.Linear(config.hidden_size, inner, bias=bias)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.num_kv_heads * config.head_dim, bias=bias)
        self.output = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(
        self,
        x: Tensor,
        reading: Reading,
        *,
        layer: int,
        cache: Cache | None = None,
        dropout: Dropout | None = None,
        capture: Collection[str] = (),
        at: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what was read, (B, S, D), and captures ("cross_attention.i": (B, H, S, T)).

        With `at` (N,) the output is computed at these flat positions only: (N, D). With a cache, the encoder's keys and values
        are made by the first call.
        """
        q = self.query(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        if cache is not None and layer in cache.cross:
            k, v = cache.cross[layer]
        else:
            kv = self.key_value(reading.memory.states).unflatten(-1, (2, self.num_kv_heads, self.head_dim))
            k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
            if cache is not None:
                cache.cross[layer] = (k, v)
        name = f"cross_attention.{layer}"
        mixed, probabilities = mix(
            q,
            k,
            v,
            reading.plan,
            scale=self.scale,
            dropout=dropout,
            site=CROSS_SITES + 2 * layer,
            wants_probabilities=name in capture,
        )
        if reading.sees is not None:
            mixed = mixed * reading.sees
        mixed = mixed.transpose(1, 2).flatten(2)
        out = self.output(mixed if at is None else mixed.flatten(0, 1).index_select(0, at))
        return out, {} if probabilities is None else {name: probabilities}
