"""Two stacks: an encoder that reads the input, and a decoder that reads its output and writes from left to right.

Both are the one `Transformer` with one token embedding; only the decoder's layers have cross attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from seedbed.batch import Batch, Hidden
from seedbed.errors import IncompatibleError
from seedbed.hashing import fold
from seedbed.models.cache import Cache, Memory
from seedbed.models.config import TransformerConfig
from seedbed.models.layers.embedding import Embedding
from seedbed.models.transformer import Transformer

__all__ = ["EncoderDecoder"]

_DECODER = 0x6465636F
"""Folded into the dropout key of the decoder, so that no site of it shares its draws with the encoder."""


class EncoderDecoder(nn.Module):
    """Map a batch with a decoder side to the decoder's hidden states.

    The token embedding is one module in both stacks: one Parameter, named after the encoder. Positions, norms and
    relative biases are each stack's own.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Transformer(config.side("encoder"))
        self.decoder = Transformer(config.side("decoder"), reads_memory=True)
        self.decoder.embedding.token = self.encoder.embedding.token

    @property
    def embedding(self) -> Embedding:
        """Return the encoder's embedding; its `token` is the decoder's too."""
        return self.encoder.embedding

    def forward(
        self,
        batch: Batch,
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
        capture: Sequence[str] = (),
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Hidden:
        """Encode the input and decode the decoder's tokens, each of which sees those before it in its segment.

        Args:
            batch: `input_ids` for the encoder, which attends as `attention` says, `decoder_input_ids` (B, S) for the decoder.
            dropout_key: 0-d integer tensor; None means no dropout.
            embedding_delta: (B, T, D) added to the encoder's token embeddings.
            capture: names as of `Transformer`, each with "encoder." or "decoder." before it; "decoder.cross_attention.i" are
                probabilities (B, H, S, T). "encoder.last" is the encoder's output.
            cache: past tokens of the decoder. The first call runs the encoder and keeps what is read of it; in later calls
                `input_ids` is not looked at.
            at: (N,) flat positions into (B * S) of the decoder where `last` is wanted.

        Returns:
            `last` (B, S, D), or (N, D) with `at`, of the decoder; `captured` by name.

        Raises:
            IncompatibleError: the batch has no decoder side, or asks for what this model does not have.
        """
        if batch.decoder_input_ids is None:
            raise IncompatibleError(
                "the batch has no decoder side, which an encoder-decoder needs.",
                hint="give decoder_input_ids, or run trunk.encode for the encoder alone",
            )
        wanted = {
            side: [c.removeprefix(side) for c in capture if c.startswith(side)]
            for side in ("encoder.", "decoder.")
        }
        if unknown := [name for name in capture if not name.startswith(tuple(wanted))]:
            raise IncompatibleError(
                f"cannot capture {', '.join(unknown)} from an encoder-decoder.",
                hint='names begin with "encoder." or "decoder."',
            )
        captured: dict[str, Tensor] = {}
        memory = cache.memory if cache is not None else None
        if memory is None:
            encoded = self.encode(
                batch,
                dropout_key=dropout_key,
                embedding_delta=embedding_delta,
                capture=[name for name in wanted["encoder."] if name != "last"],
            )
            memory = Memory(encoded.last, _segments(batch.segment_ids, batch.input_ids))
            captured |= {f"encoder.{name}": value for name, value in encoded.captured.items()}
            if cache is not None:
                cache.memory = memory
        if "last" in wanted["encoder."]:
            captured["encoder.last"] = memory.states
        decoded = self.decoder(
            Batch(
                input_ids=batch.decoder_input_ids,
                segment_ids=batch.decoder_segment_ids,
                position_ids=batch.decoder_position_ids,
                row_ids=batch.row_ids,
                attention="causal",
                is_segmented=batch.is_segmented,
                has_padding=batch.has_padding,
            ),
            dropout_key=None if dropout_key is None else fold(dropout_key.to(torch.int32), _DECODER),
            capture=wanted["decoder."],
            cache=cache,
            at=at,
            memory=memory,
        )
        captured |= {f"decoder.{name}": value for name, value in decoded.captured.items()}
        return Hidden(last=decoded.last, captured=captured)

    def encode(
        self,
        batch: Batch,
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
        capture: Sequence[str] = (),
    ) -> Hidden:
        """Run the encoder alone; the batch's decoder side is not looked at. Names of `capture` have no prefix here."""
        alone = replace(batch, decoder_input_ids=None, decoder_segment_ids=None, decoder_position_ids=None)
        hidden: Hidden = self.encoder(
            alone, dropout_key=dropout_key, embedding_delta=embedding_delta, capture=capture
        )
        return hidden


def _segments(segment_ids: Tensor | None, ids: Tensor) -> Tensor:
    return torch.ones_like(ids, dtype=torch.int32) if segment_ids is None else segment_ids
