"""The one Transformer: a batch in, hidden states out. What kind it is, its config says.

Single-device code that never sees labels. Heads are in `heads.py`, initial values in `init.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seedbed.batch import Batch, Hidden
from seedbed.errors import IncompatibleError
from seedbed.models.cache import Cache, Memory
from seedbed.models.config import TransformerConfig
from seedbed.models.layers.attention import Attention, AttentionPlan, Table, ValueMix, form_for
from seedbed.models.layers.block_mask import flex_within, takes_flex
from seedbed.models.layers.cross_attention import CROSS_SITES, CrossAttention, Reading
from seedbed.models.layers.dropout import QUERY_SITES, Dropout
from seedbed.models.layers.embedding import Embedding
from seedbed.models.layers.feed_forward import FeedForward
from seedbed.models.layers.mask import (
    additive,
    may_attend,
    may_read,
    query_plan,
    reach_of,
    within_window,
)
from seedbed.models.layers.norm import make_norm
from seedbed.models.layers.position import (
    RelativePositions,
    alibi_bias,
    restarting_positions,
    rotary_table,
)

__all__ = ["Layer", "Transformer"]


@dataclass(frozen=True, slots=True)
class First:
    """What later layers read of the first: the streams that enter it, and its values."""

    content: Tensor
    stream: Tensor | None
    values: list[Tensor] = field(default_factory=list)


class Layer(nn.Module):
    """One block: attention and feed-forward, each with a residual and a norm before or after.

    A block knows its depth only when it runs: shared ones run at several. With `reads_memory` it has cross attention between
    the two: a decoder's block that reads an encoder.
    """

    def __init__(
        self, config: TransformerConfig, index: int, attention: Attention, *, reads_memory: bool = False
    ) -> None:
        super().__init__()
        self.is_pre_norm = config.norm_place == "pre"
        has_norm = index > 0 or config.has_first_norm
        self.attention_norm = make_norm(config) if has_norm else nn.Identity()
        self.attention = attention
        self.cross_attention_norm = make_norm(config) if reads_memory else None
        self.cross_attention = CrossAttention(config) if reads_memory else None
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        # (1,), not (): FSDP2 cannot shard what has no dimension. The first layer has neither shortcut nor share: its input
        # is x0, its values are the first.
        scalars, shares = config.residual_scalars, config.value_residual and index > 0
        self.has_value_mix = config.value_residual
        self.residual_scalar = nn.Parameter(torch.ones(1)) if scalars else None
        self.shortcut_scalar = nn.Parameter(torch.zeros(1)) if scalars and index > 0 else None
        self.value_scalar = nn.Parameter(torch.full((1,), 0.5)) if shares else None

    def forward(
        self,
        x: Tensor,
        stream: Tensor | None,
        plan: AttentionPlan,
        *,
        index: int,
        cache: Cache | None,
        dropout: Dropout | None,
        places: Tensor | None,
        query_places: Tensor | None,
        capture: Collection[str],
        at: Tensor | None = None,
        first: First | None = None,
        reading: Reading | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return the next content (B, T, D), the next query stream (B, Q, D) or None, and what was captured.

        `index` is the depth: it names captures, cache slots and dropout sites. With `at` (N,) the next content is computed
        at these flat positions only: (N, D). Cross attention needs its rows whole, so where there is one only what comes
        after it is spared.
        """
        pre = self.is_pre_norm
        values = None
        if first is not None:
            x = self._enter(x, first.content)
            stream = self._enter(stream, first.stream) if stream is not None else None
            values = ValueMix(first.values, self.value_scalar) if self.has_value_mix else None
        out, answer, captured = self.attention(
            self.attention_norm(x) if pre else x,
            plan,
            layer=index,
            stream=self.attention_norm(stream) if pre and stream is not None else stream,
            cache=cache,
            dropout=dropout,
            capture=capture,
            at=at if self.cross_attention is None else None,
            values=values,
        )
        norm, site = self.attention_norm, 3 * index + 1
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            assert reading is not None
            x = self._add(x, out, norm, dropout, layer=index, site=site, places=places)
            out, seen = self.cross_attention(
                self.cross_attention_norm(x) if pre else x,
                reading,
                layer=index,
                cache=cache,
                dropout=dropout,
                capture=capture,
                at=at,
            )
            captured.update(seen)
            norm, site = self.cross_attention_norm, CROSS_SITES + 2 * index + 1
        if at is not None:
            x = x.flatten(0, 1).index_select(0, at)
        x = self._add(x, out, norm, dropout, layer=index, site=site, places=places, at=at)
        x = self._feed(x, dropout, layer=index, site=3 * index + 2, places=places, at=at)
        if stream is not None and answer is not None:
            site = QUERY_SITES + 3 * index
            stream = self._add(
                stream, answer, self.attention_norm, dropout, layer=index, site=site + 1, places=query_places
            )
            stream = self._feed(stream, dropout, layer=index, site=site + 2, places=query_places)
        return x, stream, captured

    def _enter(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Weigh the stream, and add the weighed start of it."""
        if self.residual_scalar is not None:
            x = x * self.residual_scalar
        if self.shortcut_scalar is not None and start is not None:
            x = torch.addcmul(x, start, self.shortcut_scalar)
        return x

    def _feed(
        self,
        x: Tensor,
        dropout: Dropout | None,
        *,
        layer: int,
        site: int,
        places: Tensor | None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Add the feed-forward block."""
        out = self.feed_forward(self.feed_forward_norm(x) if self.is_pre_norm else x)
        return self._add(
            x, out, self.feed_forward_norm, dropout, layer=layer, site=site, places=places, at=at
        )

    def _add(
        self,
        x: Tensor,
        out: Tensor,
        norm: nn.Module,
        dropout: Dropout | None,
        *,
        layer: int,
        site: int,
        places: Tensor | None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Add what a sublayer gave; its norm follows where norms come after."""
        if dropout is not None and places is not None:
            out = dropout.hidden(out, site=site, places=places, at=at)
            out = dropout.sublayer(out, site=site, layer=layer, length=places.shape[1], at=at)
        x = x + out
        if self.is_pre_norm:
            return x
        normed: Tensor = norm(x)
        return normed


class Transformer(nn.Module):
    """Map a batch to hidden states: one stack, of which an `EncoderDecoder` has two.

    A sibling has another attention and its own plans (see `trunks.py`).
    """

    attention_type: ClassVar[type[Attention]] = Attention
    can_fuse: ClassVar[bool] = True
    """The attention can use the fused kernel."""
    recomputes: bool = False
    """Keep a layer's input only, and run the layer again in the backward pass (activation checkpointing, 1604.06174)."""
    compiled: Callable[..., Hidden] | None = None
    """`run`, compiled (`trunks.compile_stacks`): what a training step calls in its place."""

    flex: Callable[..., Tensor] | None = None
    """Block-sparse attention, for masks that leave blocks empty (`trunks.use_flex`)."""

    def __init__(self, config: TransformerConfig, *, reads_memory: bool = False) -> None:
        super().__init__()
        self.config = config
        self.reads_memory = reads_memory
        self.embedding = Embedding(config)
        self.relative = RelativePositions(config) if config.positions == "relative" else None
        self.layers = nn.ModuleList(
            Layer(config, index, self.attention_type(config), reads_memory=reads_memory)
            for index in range(config.num_stored_layers)
        )
        self.final_norm = make_norm(config) if config.has_final_norm else None

    def forward(
        self,
        batch: Batch,
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
        capture: Sequence[str] = (),
        cache: Cache | None = None,
        at: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Hidden:
        """Run the model.

        Args:
            batch: what to read; with a cache, the new tokens only.
            dropout_key: 0-d integer tensor; None means no dropout, whatever `training` says.
            embedding_delta: (B, T, E) added to the token embeddings (adversarial passes); E is D unless factorised.
            capture: names to return: "hidden.i" (0: embedding output, num_layers: before the final norm), "query.i", "key.i",
                "value.i", "attention.i" and, of a stack that reads memory, "cross_attention.i" (probabilities; that layer
                takes the unfused path).
            cache: past tokens; the new ones are appended to it.
            at: (N,) flat positions into (B * T) where `last` is wanted. The last layer's output projection, feed-forward
                block and norm then run there only: an eighth of the work of a masked-LM step in a model of four layers.
                Values and gradients are the same.
            memory: what cross attention reads, for a stack that has it.

        Returns:
            `last` (B, T, D), or (N, D) with `at`; `query` (B, Q, D) when the batch has `query_at`; `captured` by name.

        Raises:
            IncompatibleError: the batch asks for what this model does not have, or is longer than it can read.
        """
        # Decoding makes a new shape with every token, and evaluation has shapes of its own: compiling them would cost more than
        # it gives. The function is not bound: a copy of this module calls it with itself.
        is_step = torch.is_grad_enabled() and cache is None and not capture
        run = self.compiled if self.compiled is not None and is_step else type(self).run
        return run(
            self,
            batch,
            dropout_key=dropout_key,
            embedding_delta=embedding_delta,
            capture=capture,
            cache=cache,
            at=at,
            memory=memory,
        )

    def run(
        self,
        batch: Batch,
        *,
        dropout_key: Tensor | None,
        embedding_delta: Tensor | None,
        capture: Sequence[str],
        cache: Cache | None,
        at: Tensor | None,
        memory: Memory | None,
    ) -> Hidden:
        """Do what `forward` says. All choices here are made by shapes and plain fields, so it compiles to one graph for each."""
        config = self.config
        self._check(batch, capture, cache)
        if at is not None and f"hidden.{config.num_layers}" in capture:
            raise IncompatibleError(
                f"hidden.{config.num_layers} is not computed everywhere when `at` is given."
            )
        segment_ids = batch.segment_ids
        if segment_ids is None:
            segment_ids = torch.ones_like(batch.input_ids, dtype=torch.int32)
        start = cache.reserve(segment_ids, batch.attend_order) if cache is not None else 0
        positions = self._positions(batch, segment_ids, cache, start)
        wanted = frozenset(capture)
        dropout = self._dropout(batch, dropout_key)

        x = self.embedding(batch.input_ids, positions, batch.token_type_ids, embedding_delta)
        stream = query_positions = places = query_places = None
        if batch.query_at is not None:
            query_positions = positions.expand_as(batch.input_ids).gather(1, batch.query_at)
            stream = self.embedding.embed_query(query_positions)
        if dropout is not None:
            places = dropout.places(torch.arange(start, start + x.shape[1], device=x.device))
            x = dropout.hidden(x, site=QUERY_SITES - 1, places=places)
            if stream is not None and batch.query_at is not None:
                query_places = dropout.places(batch.query_at)
                stream = dropout.hidden(stream, site=2 * QUERY_SITES - 1, places=query_places)
        x = self.embedding.project(x)
        stream = self.embedding.project(stream) if stream is not None else None

        plans = self._plans(batch, segment_ids, positions, query_positions, cache, start, wanted)
        reading = None if memory is None else self._reading(batch, segment_ids, memory)
        captured: dict[str, Tensor] = {}
        first = First(x, stream) if config.residual_scalars or config.value_residual else None
        for index in range(config.num_layers):
            if f"hidden.{index}" in wanted:
                captured[f"hidden.{index}"] = x
            run_layer = partial(
                self.layers[config.stored_layer(index)],
                index=index,
                cache=cache,
                dropout=dropout,
                places=places,
                query_places=query_places,
                capture=wanted,
                at=at if index + 1 == config.num_layers else None,
                first=first,
                reading=reading,
            )
            if self.recomputes and torch.is_grad_enabled() and cache is None:
                # Dropout is a hash of where it happens, so running a layer again drops the same values without any state.
                x, stream, seen = checkpoint(
                    run_layer,
                    x,
                    stream,
                    plans[config.is_local(index)],
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x, stream, seen = run_layer(x, stream, plans[config.is_local(index)])
            captured.update(seen)
        if f"hidden.{config.num_layers}" in wanted:
            captured[f"hidden.{config.num_layers}"] = x
        if self.final_norm is not None:
            x = self.final_norm(x)
            stream = self.final_norm(stream) if stream is not None else None
        return Hidden(last=x, query=stream, captured=captured)

    def _check(self, batch: Batch, capture: Sequence[str], cache: Cache | None) -> None:
        """Refuse, once and early, what this model cannot do."""
        config = self.config
        end = batch.input_ids.shape[1] + (cache.length if cache is not None else 0)
        if end > config.max_length:
            raise IncompatibleError(
                f"a row of {end} tokens is longer than this model reads ({config.max_length}).",
                hint="cut the text, or train with a larger model.max_length",
            )
        if batch.token_type_ids is not None and not config.type_vocab_size:
            raise IncompatibleError("the batch has token types, this model has no embedding for them.")
        if batch.query_at is not None and (not config.query_stream or cache is not None):
            raise IncompatibleError(
                "the batch asks for a query stream, which this model does not have (or has no cache for).",
                hint="build it with query_stream=True",
            )
        if batch.decoder_input_ids is not None:
            raise IncompatibleError("the batch has a decoder side, this model has one stack only.")
        count = config.num_layers
        known = {f"{kind}.{i}" for kind in ("query", "key", "value", "attention") for i in range(count)}
        known |= {f"hidden.{i}" for i in range(count + 1)}
        if self.reads_memory:
            known |= {f"cross_attention.{i}" for i in range(count)}
        if unknown := [name for name in capture if name not in known]:
            raise IncompatibleError(
                f"cannot capture {', '.join(unknown)} from a model of {count} layers.",
                hint="names are hidden.0 to hidden.L and query|key|value|attention.0 to L - 1",
            )

    def _positions(self, batch: Batch, segment_ids: Tensor, cache: Cache | None, start: int) -> Tensor:
        """Return position ids (B or 1, T)."""
        if batch.position_ids is not None:
            return batch.position_ids
        if not batch.is_segmented:
            return torch.arange(start, start + batch.input_ids.shape[1], device=segment_ids.device)[None]
        if cache is None:
            return restarting_positions(segment_ids)
        return restarting_positions(cache.segment_ids[:, : cache.length])[:, start:]

    def _dropout(self, batch: Batch, key: Tensor | None) -> Dropout | None:
        config = self.config
        if key is None or not (config.hidden_dropout or config.attention_dropout or config.stochastic_depth):
            return None
        row_ids = batch.row_ids
        if row_ids is None:
            row_ids = torch.arange(batch.input_ids.shape[0], device=key.device)
        return Dropout(
            key=key.to(torch.int32),
            row_ids=row_ids,
            hidden_rate=config.hidden_dropout,
            attention_rate=config.attention_dropout,
            depth_rate=config.stochastic_depth,
            num_layers=config.num_layers,
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
        """Return how global (False) and local (True) layers attend, from plain fields where they suffice."""
        config = self.config
        device = segment_ids.device
        dtype = _compute_dtype(self.embedding.token.weight)
        total = start + segment_ids.shape[1]
        key_positions = positions if cache is None else cache.place(positions)
        if batch.position_ids is None and self.relative is not None:
            # Tokens of a segment stand side by side, so their places in the row are as far apart as their positions, and one
            # bias serves all rows.
            distance: Tensor | None = self.relative(total, start).to(dtype)
        else:
            distance = self._distance_bias(positions, key_positions, dtype)
        is_plainly_causal = (
            batch.attention == "causal" and start == 0 and not batch.is_segmented and not batch.has_padding
        )
        is_plainly_causal = is_plainly_causal and distance is None
        kinds = {config.is_local(index) for index in range(config.num_layers)}
        reaches = {
            is_local: reach_of(batch, config.local_window if is_local else 0) for is_local in sorted(kinds)
        }
        forms = {
            is_local: form_for(
                queries=total - start, keys=total, device_type=device.type, reach=reach, bias=distance
            )
            if self.can_fuse
            else "batched"
            for is_local, reach in reaches.items()
        }
        needs_bias = "batched" in forms.values() or any(name.startswith("attention.") for name in wanted)
        needs_bias = needs_bias or config.attention_dropout > 0
        is_flex = self.flex is not None and takes_flex(
            device_type=device.type,
            length=total,
            head_dim=config.head_dim,
            attention=batch.attention,
            is_training=torch.is_grad_enabled(),
            has_bias=needs_bias or distance is not None or cache is not None or batch.query_at is not None,
        )

        allowed: Tensor | None = None
        if needs_bias or not is_plainly_causal or config.local_window:
            allowed = may_attend(batch, segment_ids, cache, start)
        query = query_plan(batch, segment_ids, batch.query_at, dtype) if batch.query_at is not None else None
        if query is not None and query_positions is not None:
            near = self._distance_bias(query_positions, key_positions, dtype)
            query = replace(query, bias=query.bias if near is None else query.bias + near)
        plans = {}
        if is_flex and batch.is_segmented:
            allowed = None  # what restricts is in the blocks
        for is_local, reach in reaches.items():
            mask, flex = allowed, None
            if is_flex and self.flex is not None and (batch.is_segmented or is_local):
                window = config.local_window if is_local else 0
                mask, flex = None, flex_within(self.flex, batch, segment_ids, window=window)
            elif is_local and (needs_bias or forms[is_local] != "blocked"):
                near = within_window(total, start, config.local_window, device)
                mask = near if allowed is None else allowed & near
            theta = config.local_rope_theta if is_local else config.rope_theta
            scale = 1.0 if is_local else config.rope_scale
            plans[is_local] = AttentionPlan(
                bias=_total(additive(mask, dtype), distance),
                is_causal=is_plainly_causal and not is_local,
                form=forms[is_local],
                rotary=self._rotary(positions, theta, dtype, scale=scale),
                query=query,
                query_rotary=self._rotary(query_positions, theta, dtype, scale=scale),
                flex=flex,
                reach=reach,
            )
        return plans

    def _distance_bias(self, own: Tensor, theirs: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return what scores gain by distance, (B or 1, H, T, S), or None where they do not depend on it."""
        if self.relative is not None:
            return self.relative.between(own, theirs).to(dtype)
        if self.config.positions != "alibi":
            return None
        return alibi_bias(own, theirs, self.config.num_heads, dtype)

    def _reading(self, batch: Batch, segment_ids: Tensor, memory: Memory) -> Reading:
        """Return how this decoder reads an encoder."""
        allowed = may_read(batch, segment_ids, memory.segment_ids)
        sees = None
        dtype = _compute_dtype(self.embedding.token.weight)
        if allowed is not None:
            some = allowed.any(-1, keepdim=True)
            # A softmax over nothing is not a number: who may read nothing reads all, and that is taken times zero.
            allowed, sees = allowed | ~some, some[:, None].to(dtype)
        form = form_for(
            queries=segment_ids.shape[1],
            keys=memory.segment_ids.shape[1],
            device_type=segment_ids.device.type,
        )
        plan = AttentionPlan(bias=additive(allowed, dtype), is_causal=False, form=form, rotary=None)
        return Reading(memory, plan, sees)

    def _rotary(
        self, positions: Tensor | None, theta: float, dtype: torch.dtype, *, scale: float
    ) -> Table | None:
        if positions is None or self.config.positions != "rope":
            return None
        cos, sin = rotary_table(positions, self.config.head_dim, theta, dtype, scale=scale)
        return cos[:, :, None], sin[:, :, None]  # (B or 1, T, 1, K)


def _total(mask: Tensor | None, distance: Tensor | None) -> Tensor | None:
    """Add two biases of which either may be missing."""
    if mask is None or distance is None:
        return distance if mask is None else mask
    return mask + distance


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the number type of matrix products here: autocast's, else the weights'."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
