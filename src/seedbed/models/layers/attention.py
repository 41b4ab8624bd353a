"""Multi-head attention with shared key-value heads: by batched matrix products, whole or in blocks, or by a fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.cache import Cache
from seedbed.models.config import TransformerConfig
from seedbed.models.layers import blocked_attention
from seedbed.models.layers.blocked_attention import UNLIMITED, Reach
from seedbed.models.layers.dropout import QUERY_SITES, Dropout
from seedbed.models.layers.mask import QueryPlan
from seedbed.models.layers.norm import make_norm
from seedbed.models.layers.position import rotate

__all__ = ["Attention", "AttentionPlan", "Form", "ValueMix", "attend", "form_for", "mix"]

Table = tuple[Tensor, Tensor]

Form = Literal["batched", "blocked", "fused"]
"""By whole batched products (`attend`), by blocks of queries (`blocked_attention`), by PyTorch's fused kernel."""

_BATCHED_LENGTH = 256
"""Up to this length batched products on a CPU are two to three times as fast as the fused kernel and its way back."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How a batch attends in layers of one kind (global or local); made once and shared by them.

    Attributes:
        bias: (B or 1, 1 or H, T, S) added to the scores: the mask, and what depends on distance. None: nothing. What `reach` or
            `is_causal` says of the mask may be missing where `form` reads those.
        is_causal: the mask is exactly the causal one, so the fused kernel may be told so instead.
        form: how scores are computed, where no probabilities are wanted or dropped.
        rotary: tables for the content (B or 1, T, 1, K), or None.
        query: how the query stream attends, or None.
        query_rotary: tables for its positions.
        flex: block-sparse attention that knows the mask (`block_mask.py`); used in the place of all else.
        reach: how far a query of this layer sees at most, for the form by blocks.
    """

    bias: Tensor | None
    is_causal: bool
    form: Form
    rotary: Table | None
    query: QueryPlan | None = None
    query_rotary: Table | None = None
    flex: Callable[..., Tensor] | None = None
    reach: Reach = UNLIMITED


@dataclass(frozen=True, slots=True)
class ValueMix:
    """Mix the first layer's values into a later layer's.

    Attributes:
        first: holds the (B, T, G, K) values of the first layer once it ran; shared by the layers of one forward pass.
        share: (1,) how much of them the layer at hand takes; None: it is the first.
    """

    first: list[Tensor]
    share: Tensor | None

    def mix(self, own: Tensor) -> Tensor:
        """Return the values (B, T, G, K) to use; the first layer's are kept and returned."""
        if self.share is None:
            self.first[:] = [own]
            return own
        return torch.lerp(own, self.first[0], self.share.to(own.dtype))


class Attention(nn.Module):
    """Attend within (B, T, D); one product makes queries, keys and values of all heads.

    Siblings whose scores have more than q k' in them replace `distances` and `meet` (`biased_attention.py`).
    """

    drops_query_stream: ClassVar[bool] = False
    """Probabilities of the query stream are dropped like those of the content."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.first_head = (
            0  # where workers share the heads, the number of heads is this worker's, and they begin here
        )
        self.scale = config.attention_scale or config.head_dim**-0.5
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.norm_eps = config.norm_eps if config.query_key_norm else None
        self.gate = (
            nn.Linear(config.hidden_size, config.num_heads, bias=False) if config.attention_gate else None
        )
        self.inner_norm = make_norm(config, config.num_heads * config.head_dim) if config.inner_norm else None
        self.output = nn.Linear(
            config.num_heads * config.head_dim, config.hidden_size, bias=config.attention_bias
        )

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan,
        *,
        layer: int,
        stream: Tensor | None = None,
        cache: Cache | None = None,
        dropout: Dropout | None = None,
        capture: Collection[str] = (),
        at: Tensor | None = None,
        values: ValueMix | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return the content's output (B, T, D), the query stream's (B, Q, D) if `stream` is given, and captures.

        With `at` (N,) the content's output is computed at these flat positions only: (N, D).
        Captured queries and keys are as they meet in the product: normed and rotated, not scaled. Captured values are mixed.
        """
        heads, groups = self.num_heads, self.num_kv_heads
        if dropout is not None and self.first_head:
            dropout = replace(dropout, first_head=self.first_head)
        qkv = self.qkv(x).view(*x.shape[:2], -1, self.head_dim)  # (B, T, H + 2G, K)
        qk, v = torch.split(qkv, [heads + groups, groups], dim=2)
        if self.norm_eps is not None:
            qk = F.rms_norm(qk, (self.head_dim,), eps=self.norm_eps)
        if plan.rotary is not None:
            qk = rotate(qk, plan.rotary)
        q, k = torch.split(qk, [heads, groups], dim=2)
        if values is not None:
            v = values.mix(v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T, K)
        if cache is not None:
            k, v = cache.append(layer, k, v)

        captured = {
            name: value
            for name, value in ((f"query.{layer}", q), (f"key.{layer}", k), (f"value.{layer}", v))
            if name in capture
        }
        name = f"attention.{layer}"
        distances = self.distances(k, plan)
        q, bias = self.meet(q, distances, plan, is_query=False)
        mixed, probabilities = mix(
            q,
            k,
            v,
            plan if bias is plan.bias else replace(plan, bias=bias),
            scale=self.scale,
            dropout=dropout,
            site=3 * layer,
            wants_probabilities=name in capture,
        )
        if probabilities is not None:
            captured[name] = probabilities
        mixed = mixed.transpose(1, 2)
        if at is not None:
            mixed = mixed.flatten(0, 1).index_select(0, at)
            x = x.flatten(0, 1).index_select(0, at)
        out = self._finish(mixed, x)

        answer = None
        if stream is not None:
            assert plan.query is not None
            rows = heads * self.head_dim
            bias = self.qkv.bias[:rows] if self.qkv.bias is not None else None
            g = F.linear(stream, self.qkv.weight[:rows], bias).view(*stream.shape[:2], heads, self.head_dim)
            if self.norm_eps is not None:
                g = F.rms_norm(g, (self.head_dim,), eps=self.norm_eps)
            if plan.query_rotary is not None:
                g = rotate(g, plan.query_rotary)
            g, bias = self.meet(g.transpose(1, 2), distances, plan, is_query=True)
            mixed, _ = attend(
                g,
                k,
                v,
                bias,
                scale=self.scale,
                dropout=dropout if self.drops_query_stream else None,
                site=QUERY_SITES + 3 * layer,
            )
            answer = self._finish((mixed * plan.query.sees).transpose(1, 2), stream)
        return out, answer, captured

    def distances(self, k: Tensor, plan: AttentionPlan) -> Any:
        """Return what both streams need of the distances to keys (B, G, S, K), computed once; here nothing."""
        return None

    def meet(
        self, q: Tensor, distances: Any, plan: AttentionPlan, *, is_query: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return queries (B, H, T, K) as they meet the keys, and what is added to the scaled scores, (B, H, T, S) or None.

        Args:
            q: of the content (T places), or of the query stream (Q).
            distances: what `distances` returned.
            plan: how the batch attends.
            is_query: these are the query stream's.
        """
        if not is_query:
            return q, plan.bias
        assert plan.query is not None
        return q, plan.query.bias

    def _finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Return the output (..., D) of the heads' mixed values (..., H, K) at places whose input was x (..., D)."""
        if self.gate is not None:
            mixed = mixed * (2 * self.gate(x).sigmoid())[..., None]
        joined = mixed.flatten(-2)
        if self.inner_norm is not None:
            joined = self.inner_norm(joined)
        out: Tensor = self.output(joined)
        return out


def form_for(
    *, queries: int, keys: int, device_type: str, reach: Reach = UNLIMITED, bias: Tensor | None = None
) -> Form:
    """Return the fastest form for so many queries and keys.

    Args:
        queries: T.
        keys: S.
        device_type: "cpu" and others.
        reach: how far a query sees.
        bias: what depends on distance; one that is learned rules out blocks.
    """
    is_learned = bias is not None and bias.requires_grad
    if not is_learned and blocked_attention.applies(queries=queries, device_type=device_type, reach=reach):
        return "blocked"
    return "fused" if device_type != "cpu" or keys > _BATCHED_LENGTH else "batched"


def mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    dropout: Dropout | None,
    site: int,
    wants_probabilities: bool,
) -> tuple[Tensor, Tensor | None]:
    """Mix values in the form the plan names, unless probabilities are wanted or dropped: then by whole products.

    Returns:
        Mixed values (B, H, T, K), and probabilities (B, H, T, S) if they were wanted.
    """
    drops = dropout is not None and dropout.attention_rate > 0
    if plan.flex is not None:
        assert not wants_probabilities
        assert not drops
        return plan.flex(q, k, v, scale=scale, enable_gqa=k.shape[1] != q.shape[1]), None
    if plan.form == "blocked" and not wants_probabilities and not drops:
        return blocked_attention.blocked_attention(q, k, v, plan.bias, reach=plan.reach, scale=scale), None
    if plan.form == "fused" and not wants_probabilities and not drops:
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if plan.is_causal else plan.bias,
            is_causal=plan.is_causal,
            scale=scale,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        return mixed, None
    mixed, probabilities = attend(q, k, v, plan.bias, scale=scale, dropout=dropout, site=site)
    return mixed, probabilities if wants_probabilities else None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    scale: float | None = None,
    dropout: Dropout | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """Compute softmax(scale q k' + bias) v by batched products.

    Heads that share keys are stacked along the rows of one product, so shared keys are never repeated.

    Args:
        q: (B, H, T, K).
        k: (B, G, S, K); H is a multiple of G.
        v: the same shape.
        bias: additive (B or 1, 1 or H, T, S), or None.
        scale: of the scores; None: 1 / sqrt(K).
        dropout: drops probabilities, if given.
        site: names the place for it.

    Returns:
        Mixed values (B, H, T, K) and probabilities (B, H, T, S).
    """
    batch, heads, length, head_dim = q.shape
    groups, total = k.shape[1], k.shape[2]
    stacked = q.reshape(batch * groups, heads // groups * length, head_dim)
    scores = torch.bmm(
        stacked * (head_dim**-0.5 if scale is None else scale), k.reshape(-1, total, head_dim).transpose(1, 2)
    )
    scores = scores.view(batch, heads, length, total)
    if bias is not None:
        scores = scores + bias
    probabilities = scores.softmax(-1)
    if dropout is not None:
        probabilities = dropout.attention(probabilities, site=site)
    mixed = torch.bmm(
        probabilities.view_as(scores).view(batch * groups, -1, total), v.reshape(-1, total, head_dim)
    )
    return mixed.view(batch, heads, length, head_dim), probabilities
