"""The siblings of the one Transformer whose attention knows distances: XLNet's, and DeBERTa's.

They share its blocks, its streams and its interface; what differs is the attention and how a batch is planned for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models.cache import Cache
from seedbed.models.config import TransformerConfig
from seedbed.models.layers.attention import AttentionPlan
from seedbed.models.layers.disentangled_attention import DisentangledAttention, DisentangledPlan, bucket
from seedbed.models.layers.norm import make_norm
from seedbed.models.layers.relative_attention import RelativeAttention, RelativePlan, sinusoids
from seedbed.models.transformer import Transformer

__all__ = ["DisentangledTransformer", "XLNetTransformer"]


class XLNetTransformer(Transformer):
    """Two-stream relative attention (XLNet, 1906.08237).

    Content (`Hidden.last`): i attends j when `attend_order[j] <= attend_order[i]`. Queries (`Hidden.query`, at the places
    `query_at`): when `<`, starting from one learned vector, so they know where they are but not what stands there. Without
    an order it is an encoder ("full") or reads from left to right ("causal"). Positions are distances only: no row is
    too long in principle, and a packed document's place in its row does not matter.

    Differs from the paper: no memory of the previous row (`mems`), so no recurrence between rows, and no bidirectional
    input pipeline (`bi_data`), which belongs to it. Dropout is on embeddings, probabilities and sublayer outputs, not on the
    distance vectors, inside the feed-forward block or on the output. A query that nothing comes before gets zeros from
    attention; `transformers` gives it the mean of all values, its own answer included.
    """

    attention_type = RelativeAttention
    can_fuse = False

    def _check(self, batch: Batch, capture: Sequence[str], cache: Cache | None) -> None:
        super()._check(batch, capture, cache)
        if batch.position_ids is not None:
            raise IncompatibleError(
                "the batch has position_ids; this model knows distances only.", hint="leave position_ids out"
            )
        if batch.token_type_ids is not None and cache is not None:
            raise IncompatibleError("a cache keeps no token types, which this model compares.")

    def _plans(
        self,
        batch: Batch,
        segment_ids: Tensor,
        positions: Tensor,
        query_positions: Tensor | None,
        cache: Cache | None,
        start: int,
        wanted: Collection[str],
    ) -> Mapping[bool, AttentionPlan]:
        plain = super()._plans(batch, segment_ids, positions, query_positions, cache, start, wanted)[False]
        length = segment_ids.shape[1]
        total, device = start + length, segment_ids.device
        distances = torch.arange(total, -length, -1, device=device)
        if clamp := self.config.clamp_length:
            distances = distances.clamp(-clamp, clamp)
        at, types = batch.query_at, batch.token_type_ids
        query_index = query_differs = None
        if at is not None:
            query_index = (total - at[:, :, None] + torch.arange(total, device=device))[:, None]
            if types is not None:
                query_differs = (types.gather(1, at)[:, :, None] != types[:, None, :])[:, None]
        plan = RelativePlan(
            bias=plain.bias,
            is_causal=False,
            form=plain.form,
            rotary=None,
            query=plain.query,
            table=sinusoids(distances, self.config.hidden_size),
            query_index=query_index,
            differs=None if types is None else (types[:, :, None] != types[:, None, :])[:, None],
            query_differs=query_differs,
        )
        return {False: plan}


class DisentangledTransformer(Transformer):
    """Disentangled attention (DeBERTa, 2006.03654; its v2 and v3 form, 2111.09543).

    One table of distance vectors, normed where the config says so, is read by every layer. Absolute positions come in with
    the embeddings where `positions` is "learned", else not at all.

    Differs from the paper: no enhanced mask decoder, which feeds absolute positions to the last layers before the masked-LM
    head; `transformers` has none either, and it is not part of what is kept after pretraining. No dropout on distance
    vectors. No convolution beside the first layer (v2 xlarge), which would read across packed documents.
    """

    attention_type = DisentangledAttention
    can_fuse = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.distance_embedding = nn.Embedding(2 * self._span, config.hidden_size)
        self.distance_norm = make_norm(config) if config.distance_norm else None

    @property
    def _span(self) -> int:
        """Return how many distances or buckets have vectors to each side."""
        return self.config.position_buckets or self.config.max_distance

    def _check(self, batch: Batch, capture: Sequence[str], cache: Cache | None) -> None:
        super()._check(batch, capture, cache)
        if batch.position_ids is not None and self.config.positions == "none":
            raise IncompatibleError(
                "the batch has position_ids; this model knows distances only.", hint="leave position_ids out"
            )

    def _plans(
        self,
        batch: Batch,
        segment_ids: Tensor,
        positions: Tensor,
        query_positions: Tensor | None,
        cache: Cache | None,
        start: int,
        wanted: Collection[str],
    ) -> Mapping[bool, AttentionPlan]:
        plain = super()._plans(batch, segment_ids, positions, query_positions, cache, start, wanted)[False]
        length, device = segment_ids.shape[1], segment_ids.device
        total = start + length
        # On the CPU whatever the model is on: a few numbers, the smallest and largest of which are needed here.
        query_rows = self._rows(torch.arange(total, -length, -1))
        key_rows = self._rows(-torch.arange(length, -total, -1))
        first = int(torch.minimum(query_rows.min(), key_rows.min()))
        last = int(torch.maximum(query_rows.max(), key_rows.max()))
        table = self.distance_embedding.weight[first : last + 1]
        query_index = key_index = None
        if (at := batch.query_at) is not None:
            places = torch.arange(total, device=device)
            query_index = (total - at[:, :, None] + places)[:, None]
            key_index = (total - places[:, None] + at[:, None, :])[:, None]
        plan = DisentangledPlan(
            bias=plain.bias,
            is_causal=False,
            form=plain.form,
            rotary=None,
            query=plain.query,
            table=table if self.distance_norm is None else self.distance_norm(table),
            query_rows=(query_rows - first).to(device, non_blocking=True),
            key_rows=(key_rows - first).to(device, non_blocking=True),
            query_index=query_index,
            key_index=key_index,
        )
        return {False: plan}

    def _rows(self, distances: Tensor) -> Tensor:
        """Return the rows of the table for distances of queries from keys."""
        config, span = self.config, self._span
        rows = bucket(distances, config.position_buckets, config.max_distance) + span
        return rows.clamp(0, 2 * span - 1)
