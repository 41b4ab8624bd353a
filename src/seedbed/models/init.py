"""Give weights their initial values: all of them in one list, from one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seedbed.models.config import TransformerConfig
from seedbed.models.encoder_decoder import EncoderDecoder
from seedbed.models.heads import LMHead, MaskedLMHead
from seedbed.models.layers.disentangled_attention import DisentangledAttention
from seedbed.models.layers.norm import Norm
from seedbed.models.layers.relative_attention import RelativeAttention
from seedbed.models.relative import DisentangledTransformer
from seedbed.models.transformer import Layer, Transformer
from seedbed.models.trunks import Trunk

__all__ = ["init_linear", "init_weights"]


@torch.no_grad()
def init_weights(trunk: Trunk, *heads: LMHead, seed: int) -> None:
    """Initialise a trunk and its language-model heads in place.

    The same seed gives the same weights on every device: values are drawn on the CPU, in float32, by a generator of this
    call alone, in the order written here.

    | kind               | matrices                                  | matrices that write to the residual stream |
    |--------------------|-------------------------------------------|--------------------------------------------|
    | `normal`           | N(0, std)                                 | the same                                   |
    | `truncated_normal` | N(0, std), redrawn beyond 2 std (BERT)    | the same                                   |
    | `scaled_residual`  | N(0, std)                                 | N(0, std / sqrt(2 L)) (GPT-2)              |
    | `glorot`           | U(-a, a), a = sqrt(6 / (fan_in + fan_out))| the same                                   |
    | `he`               | N(0, sqrt(2 / fan_in))                    | the same                                   |
    | `t5`               | N(0, 1 / sqrt(fan_in)), queries / sqrt(K) | the same                                   |

    `std` is `config.std`. Fans are those of one projection: queries, keys, values and the halves of a gate are drawn as
    the matrices they are, though stored as one. Embeddings and the vocabulary matrix are N(0, std), redrawn beyond 2 std
    for `truncated_normal`; the token embedding may have a spread of its own, `config.embedding_std`. Offsets are 0, scales 1,
    gates 1. With `config.zero_outputs` the matrices that write to the residual stream are 0 instead. Of the residual scalars a
    is 1, b 0, the share of the first layer's values 1/2.

    `t5` is Mesh TensorFlow's (1910.10683): since T5 does not scale attention scores, its queries begin as if divided by
    sqrt(K); token embeddings are N(0, 1) unless `embedding_std` says otherwise, other tables and an untied vocabulary matrix
    N(0, 1 / sqrt(D)), whatever `std` is.
    """
    config = trunk.config
    draw = _Draw(config, torch.Generator().manual_seed(seed))
    draw.table(
        trunk.embedding.token.weight,
        std=config.embedding_std or (1.0 if config.initialisation == "t5" else None),
    )
    for stack in (trunk.encoder, trunk.decoder) if isinstance(trunk, EncoderDecoder) else (trunk,):
        _init_stack(stack, draw)
    for head in heads:
        if head.weight is not trunk.embedding.token.weight:
            draw.table(head.weight)
        if isinstance(head, MaskedLMHead) and head.dense is not None:
            draw.matrix(head.dense.weight)

    for module in (trunk, *heads):
        for part in module.modules():
            if isinstance(part, Norm) and part.weight is not None:
                part.weight.fill_(1.0)
            if isinstance(part, nn.Linear | Norm | LMHead) and part.bias is not None:
                part.bias.zero_()


def _init_stack(trunk: Transformer, draw: _Draw) -> None:
    """Draw the weights of one stack, but for the token embedding, which two stacks share."""
    config = trunk.config
    heads_, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if trunk.embedding.position is not None:
        draw.table(trunk.embedding.position.weight)
    if trunk.embedding.token_type is not None:
        draw.table(trunk.embedding.token_type.weight)
    if trunk.embedding.query is not None:
        draw.table(trunk.embedding.query)
    if trunk.embedding.projection is not None:
        draw.matrix(trunk.embedding.projection.weight)
    if trunk.relative is not None:
        draw.table(trunk.relative.weight)
    if isinstance(trunk, DisentangledTransformer):
        draw.table(trunk.distance_embedding.weight)
    for layer in trunk.layers:
        assert isinstance(layer, Layer)
        draw.matrix(layer.attention.qkv.weight, rows=[heads_, groups, groups])
        draw.matrix(layer.attention.output.weight, writes_residual=True)
        if isinstance(layer.attention, RelativeAttention):
            draw.relative(layer.attention)
        if isinstance(layer.attention, DisentangledAttention):
            for own in (layer.attention.position_key, layer.attention.position_query):
                if own is not None:
                    draw.matrix(own.weight)
        if config.initialisation == "t5":
            layer.attention.qkv.weight[:heads_] *= config.head_dim**-0.5
        if layer.cross_attention is not None:
            draw.matrix(layer.cross_attention.query.weight)
            draw.matrix(layer.cross_attention.key_value.weight, rows=[groups, groups])
            draw.matrix(layer.cross_attention.output.weight, writes_residual=True)
            if config.initialisation == "t5":
                layer.cross_attention.query.weight *= config.head_dim**-0.5
        draw.matrix(layer.feed_forward.input.weight, rows=[config.ffn_size] * (2 if config.is_gated else 1))
        draw.matrix(layer.feed_forward.output.weight, writes_residual=True)
        if config.zero_outputs:
            layer.attention.output.weight.zero_()
            layer.feed_forward.output.weight.zero_()
            if layer.cross_attention is not None:
                layer.cross_attention.output.weight.zero_()
        if layer.attention.gate is not None:
            layer.attention.gate.weight.zero_()  # each gate is 1
        for scalar, start in (
            (layer.residual_scalar, 1.0),
            (layer.shortcut_scalar, 0.0),
            (layer.value_scalar, 0.5),
        ):
            if scalar is not None:
                scalar.fill_(start)


@torch.no_grad()
def init_linear(module: nn.Module, config: TransformerConfig, *, seed: int) -> None:
    """Initialise the linear layers of a module in place, in the order they were made: matrices as above, offsets 0."""
    draw = _Draw(config, torch.Generator().manual_seed(seed))
    for part in module.modules():
        if isinstance(part, nn.Linear):
            draw.matrix(part.weight)
            if part.bias is not None:
                part.bias.zero_()


@dataclass(frozen=True, slots=True)
class _Draw:
    """Fill weights with random values of one kind."""

    config: TransformerConfig
    generator: torch.Generator

    def table(self, weight: Tensor, *, std: float | None = None) -> None:
        """Fill an embedding, of tokens or of places, or the vocabulary matrix."""
        own = self.config.hidden_size**-0.5 if self.config.initialisation == "t5" else self.config.std
        self._normal(weight, std or own)

    def relative(self, attention: RelativeAttention) -> None:
        """Fill what XLNet's attention has besides its projections; its queries are vectors, not offsets."""
        self.matrix(attention.relative.weight)
        self.table(attention.content_query)
        self.table(attention.position_query)
        self.table(attention.segment_query)
        self.table(attention.segment)

    def matrix(self, weight: Tensor, *, rows: Sequence[int] = (), writes_residual: bool = False) -> None:
        """Fill a matrix (out, in); `rows` are the sizes of the projections stacked in it."""
        kind, fan_in = self.config.initialisation, weight.shape[1]
        for part in torch.split(weight, list(rows) or [weight.shape[0]]):
            if kind == "glorot":
                bound = math.sqrt(6 / (fan_in + part.shape[0]))
                part.copy_(torch.empty(part.shape).uniform_(-bound, bound, generator=self.generator))
            elif kind == "he":
                self._normal(part, math.sqrt(2 / fan_in))
            elif kind == "t5":
                self._normal(part, fan_in**-0.5)
            elif kind == "scaled_residual" and writes_residual:
                self._normal(part, self.config.std / math.sqrt(2 * self.config.num_layers))
            else:
                self._normal(part, self.config.std)

    def _normal(self, weight: Tensor, std: float) -> None:
        values = torch.empty(weight.shape)
        if self.config.initialisation == "truncated_normal":
            nn.init.trunc_normal_(values, 0.0, std, -2 * std, 2 * std, generator=self.generator)
        else:
            values.normal_(0.0, std, generator=self.generator)
        weight.copy_(values)
