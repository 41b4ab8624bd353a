"""Describe a Transformer completely: everything its weights do not say.

`TransformerConfig` is what a checkpoint stores and what a Hugging Face folder is translated to and from. The small
recipe section a user writes is in `<family>.py`, the sizes behind its presets in `presets.py`. No torch here.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from seedbed.config import Config

__all__ = ["Activation", "AttentionKind", "Initialisation", "Stack", "TransformerConfig"]

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu_squared"]
AttentionKind = Literal["dot_product", "xlnet", "disentangled"]
Stack = Literal["encoder", "decoder", "encoder_decoder"]
Initialisation = Literal["normal", "truncated_normal", "scaled_residual", "glorot", "he", "t5"]


class TransformerConfig(Config):
    """Describe one Transformer and its language-model head.

    Every combination that validates runs. Those that a Hugging Face family can express export exactly.
    """

    family: str = Field(
        "native", description="Key in MODELS whose Hugging Face form this is; native: it has none."
    )
    vocab_size: int = Field(ge=1, description="Token ids, special ones included.")
    hidden_size: int = Field(ge=1, description="Width D of the residual stream.")
    num_layers: int = Field(
        ge=1, description="Blocks of attention and feed-forward; of the encoder, if there are two stacks."
    )
    num_decoder_layers: int = Field(
        0, ge=0, description="Blocks of a decoder that also reads the encoder's output; 0: one stack only."
    )
    num_heads: int = Field(ge=1, description="Query heads H.")
    num_kv_heads: int = Field(
        ge=1, description="Key and value heads; fewer than num_heads are shared by groups."
    )
    head_dim: int = Field(ge=1, description="Width K of one head.")
    ffn_size: int = Field(ge=1, description="Width F inside the feed-forward block (of one half when gated).")
    max_length: int = Field(
        ge=1, description="Longest row, tokens; also the size of a learned position table."
    )
    embedding_size: int = Field(
        0,
        ge=0,
        description="Width E of token, position and type embeddings, projected to D, and of the head's transform "
        "(ALBERT, ELECTRA). 0: they are D wide and nothing is projected.",
    )
    num_layer_groups: int = Field(
        0,
        ge=0,
        description="Groups of layers that share their weights (ALBERT): depth is cut into this many stretches, each of "
        "which repeats one group. 0: every layer has weights of its own.",
    )
    layers_per_group: int = Field(1, ge=1, description="Different layers in a group, run in turn.")
    type_vocab_size: int = Field(0, ge=0, description="Sentence marks (A/B) with an embedding; 0: none.")

    norm: Literal["layer", "rms"] = Field("layer", description="LayerNorm, or RMSNorm without centring.")
    norm_eps: float = Field(1e-5, gt=0, description="Added to the variance.")
    norm_place: Literal["pre", "post"] = Field(
        "pre", description="pre: before each sublayer, on its branch. post: after the sum, as BERT."
    )
    norm_bias: bool = Field(False, description="Norms have an offset (LayerNorm only).")
    norm_scale: bool = Field(
        True,
        description="Norms have a learned scale. False: none, the matrix behind can learn it (modded-nanogpt, nanochat).",
    )
    has_embedding_norm: bool = Field(False, description="Norm after the embeddings.")
    has_first_norm: bool = Field(
        True, description="False: the first attention reads the stream without a norm (ModernBERT)."
    )
    has_final_norm: bool = Field(True, description="Norm after the last layer.")
    inner_norm: bool = Field(
        False,
        description="Norm before the output projections of attention and feed-forward too (LTG-BERT, 2303.09859).",
    )
    residual_scalars: bool = Field(
        False,
        description="Each layer reads a x + b x0 instead of x; x0 enters the first, a starts at 1, b at 0 (modded-nanogpt).",
    )
    value_residual: bool = Field(
        False,
        description="Each layer mixes its values with the first layer's, by a learned share that starts at 1/2 (2410.17897).",
    )

    positions: Literal["learned", "sinusoidal", "rope", "relative", "alibi", "none"] = Field(
        "rope",
        description="How order enters. learned: a table of max_length vectors. sinusoidal: a fixed table (1706.03762). rope:"
        " queries and keys are rotated (2104.09864). relative: one learned bias per head and bucket of distances, shared by the"
        " layers (1910.10683). alibi: scores fall with distance, at a slope per head (2108.12409)."
        " none: only through the causal mask.",
    )
    position_offset: int = Field(
        0,
        ge=0,
        description="Row of the learned position table that position 0 reads; the table is longer by as many rows "
        "(RoBERTa: pad id + 1, BART: 2).",
    )
    embedding_scale: float = Field(
        1.0,
        gt=0,
        description="Token embeddings are multiplied by it before positions are added (sqrt(D) in 1706.03762).",
    )
    relative_buckets: int = Field(
        32, ge=4, description="Buckets of relative positions; half of them for each side unless causal."
    )
    relative_max_distance: int = Field(
        128, ge=1, description="Distance from which on all relative positions share the last bucket, tokens."
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary wavelengths.")
    rope_scale: float = Field(
        1.0,
        gt=0,
        description="Rotary positions are divided by it, in layers with global attention (position interpolation, 2306.15595).",
    )
    local_rope_theta: float = Field(10_000.0, gt=0, description="The same, in layers with local attention.")
    local_window: int = Field(
        0,
        ge=0,
        description="Width of local attention: |i - j| <= local_window / 2. 0: every layer is global.",
    )
    global_every_n: int = Field(
        1, ge=1, description="With a local window: layers 0, n, 2n, ... are global, the rest local."
    )

    attention_kind: AttentionKind = Field(
        "dot_product", description="How queries meet keys; which trunk is built (models/trunks.py)."
    )
    clamp_length: int = Field(
        0,
        ge=0,
        description="With attention_kind=xlnet: distances beyond this count as this. 0: all are told apart.",
    )
    position_buckets: int = Field(
        0,
        ge=0,
        description="With attention_kind=disentangled: buckets of distances to each side, the far half logarithmic. 0: every "
        "distance has a vector.",
    )
    max_distance: int = Field(
        0, ge=0, description="With attention_kind=disentangled: distance at which the last bucket ends."
    )
    content_to_position: bool = Field(
        False, description="With attention_kind=disentangled: a query's content meets the key's distance."
    )
    position_to_content: bool = Field(
        False, description="With attention_kind=disentangled: the distance meets the key's content."
    )
    share_position_projections: bool = Field(
        False, description="Distances are projected by the matrices of queries and keys (DeBERTa-v3)."
    )
    distance_norm: bool = Field(False, description="Norm over the vectors of distances (DeBERTa-v2 and v3).")

    attention_scale: float | None = Field(
        None, gt=0, description="Attention scores are multiplied by it; T5: 1. null: 1 / sqrt(head_dim)."
    )
    query_key_norm: bool = Field(
        False,
        description="RMSNorm without scale on the queries and keys of each head (2010.04245), so that scores stay below sqrt(K).",
    )
    attention_gate: bool = Field(
        False,
        description="Each head's output is multiplied by 2 sigmoid(w x), 1 at the start (2505.06708, without the 2).",
    )

    activation: Activation = Field("gelu", description="gelu is the erf form; gelu_tanh its approximation.")
    is_gated: bool = Field(False, description="Feed-forward is act(a) * b (GeGLU, SwiGLU) instead of act(a).")
    attention_bias: bool = Field(False, description="Offsets in the four attention projections.")
    ffn_bias: bool = Field(False, description="Offsets in the feed-forward projections.")

    hidden_dropout: float = Field(
        0.0, ge=0, lt=1, description="After the embedding and each sublayer. 0 for short runs."
    )
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="On attention probabilities; forces unfused attention."
    )
    stochastic_depth: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Rate at which the last layer's sublayers are left out for a row while training, falling to 0 towards the"
        " first (1603.09382).",
    )

    is_causal: bool = Field(
        False, description="One stack made for left-to-right prediction; false for an encoder-decoder."
    )
    tie_embeddings: bool = Field(True, description="The head uses the token embedding as its matrix.")
    head_scale: float = Field(
        1.0,
        gt=0,
        description="Hidden states are multiplied by it before the head's matrix (T5, tied: 1 / sqrt(D)).",
    )
    head_transform: bool = Field(False, description="Dense, activation and norm before the head's matrix.")
    head_activation: Activation = Field("gelu", description="Activation of that transform.")
    head_transform_bias: bool = Field(False, description="Offset in that transform's dense layer.")
    head_bias: bool = Field(False, description="One offset per token id in the logits.")
    logit_softcap: float = Field(
        0.0,
        ge=0,
        description="Logits z become c tanh(z / c) with this c (Gemma 2, 2408.00118). 0: they stay.",
    )
    query_stream: bool = Field(
        False, description="Has the learned vector that starts a content-blind second stream (XLNet)."
    )

    initialisation: Initialisation = Field("truncated_normal", description="See models/init.py.")
    initialisation_std: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of the normal kinds and of embeddings. None: sqrt(2 / (5 hidden_size)).",
    )
    embedding_std: float | None = Field(
        None, gt=0, description="The same, of the token embedding alone. None: as the others."
    )
    zero_outputs: bool = Field(
        False,
        description="Output projections of attention and feed-forward start at 0, so a new layer passes its input on "
        "(muP, 2203.03466; modded-nanogpt).",
    )
    special_ids: dict[str, int] = Field(
        default_factory=dict,
        description="Ids of pad, bos, eos, cls, sep, mask, unk, and decoder_start (the token an encoder-decoder begins "
        "to write with), where they exist.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")
        if self.norm == "rms" and self.norm_bias:
            raise ValueError("norm_bias exists with norm=layer only")
        if self.norm_bias and not self.norm_scale:
            raise ValueError("norm_bias needs norm_scale")
        if self.norm_place == "post" and self.residual_scalars:
            raise ValueError(
                "residual_scalars needs norm_place=pre: a post-norm stream has no shortcut to weigh"
            )
        if self.attention_kind != "dot_product" and (
            self.num_kv_heads != self.num_heads
            or self.local_window
            or self.num_decoder_layers
            or self.attention_scale
            or self.positions in ("rope", "relative", "alibi")
        ):
            raise ValueError(
                f"attention_kind={self.attention_kind} takes no grouped queries, local window, decoder, scale, rope, relative"
                " or alibi"
            )
        if self.attention_kind == "xlnet" and self.hidden_size % 2:
            raise ValueError(f"attention_kind=xlnet needs an even hidden_size, not {self.hidden_size}")
        if self.query_stream and (self.local_window or self.num_decoder_layers):
            raise ValueError("a query stream and a local window or a decoder do not go together")
        if self.num_decoder_layers and self.is_causal:
            raise ValueError("is_causal is for one stack; an encoder-decoder's decoder is causal anyway")
        if self.num_decoder_layers and self.num_layer_groups:
            raise ValueError("num_layer_groups is for one stack")
        if (self.attention_kind == "disentangled") != (self.content_to_position or self.position_to_content):
            raise ValueError(
                "attention_kind=disentangled and content_to_position or position_to_content need each other"
            )
        if self.attention_kind == "disentangled" and not self.max_distance:
            raise ValueError("attention_kind=disentangled needs max_distance")
        half = self.position_buckets // 2
        if self.position_buckets and (half < 1 or self.max_distance - 1 <= half < self.max_length - 1):
            raise ValueError(
                f"{self.position_buckets} position_buckets and max_distance {self.max_distance} leave no bucket for rows of "
                f"{self.max_length}"
            )
        if self.positions == "relative" and self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance {self.relative_max_distance} is not above half of relative_buckets "
                f"{self.relative_buckets}"
            )
        if self.rope_scale != 1.0 and self.positions != "rope":
            raise ValueError("rope_scale exists with positions=rope only")
        if self.position_offset and self.positions != "learned":
            raise ValueError("position_offset exists with positions=learned only")
        if self.embedding_size and not self.head_transform:
            raise ValueError("embedding_size needs head_transform, which brings features back to that width")
        if self.num_layers % self.layers_per_group or (
            self.layers_per_group > 1 and not self.num_layer_groups
        ):
            raise ValueError(
                f"{self.num_layers} layers cannot be made of groups of {self.layers_per_group}; "
                "layers_per_group must divide num_layers, and needs num_layer_groups"
            )
        if self.num_layer_groups and (self.residual_scalars or self.value_residual):
            raise ValueError("residual_scalars and value_residual belong to a depth; shared layers have none")
        if self.num_layer_groups * self.layers_per_group > self.num_layers:
            raise ValueError(f"{self.num_layer_groups} layer groups do not fit in {self.num_layers} layers")
        wrong = {name: i for name, i in self.special_ids.items() if not 0 <= i < self.vocab_size}
        if wrong:
            raise ValueError(f"special ids outside the vocabulary of {self.vocab_size}: {wrong}")
        return self

    @property
    def std(self) -> float:
        """Return the standard deviation of initial weights: `initialisation_std` or the width rule.

        sqrt(2 / 5D) is 0.0228 at D = 768, where everyone's 0.02 was tuned, and 0.0395 at 256 ("small init", T. Nguyen,
        J. Salazar, 1910.05895).
        """
        return self.initialisation_std or math.sqrt(2 / (5 * self.hidden_size))

    @property
    def stack(self) -> Stack:
        """Return what kind of model it is, the word an objective asks for."""
        if self.num_decoder_layers:
            return "encoder_decoder"
        return "decoder" if self.is_causal else "encoder"

    def side(self, stack: Literal["encoder", "decoder"]) -> Self:
        """Return the description of one stack of an encoder-decoder."""
        if stack == "encoder":
            return self.updated(num_decoder_layers=0)
        return self.updated(num_layers=self.num_decoder_layers, num_decoder_layers=0, is_causal=True)

    @property
    def token_type_rows(self) -> int:
        """Return the rows of the token-type table; XLNet has none, it compares types in every layer."""
        return 0 if self.attention_kind == "xlnet" else self.type_vocab_size

    @property
    def embedding_width(self) -> int:
        """Return the width of the embedding tables: `embedding_size`, or D."""
        return self.embedding_size or self.hidden_size

    @property
    def num_stored_layers(self) -> int:
        """Return how many layers have weights of their own."""
        return self.num_layer_groups * self.layers_per_group or self.num_layers

    def stored_layer(self, layer: int) -> int:
        """Return which stored layer runs at a depth: itself, unless layers are shared."""
        if not self.num_layer_groups:
            return layer
        repeats, inner = divmod(layer, self.layers_per_group)
        # In floating point on purpose, as transformers does it: of 18 layers in 14 groups, layer 9 is of group 6, not 7.
        group = int(repeats / (self.num_layers / self.layers_per_group / self.num_layer_groups))
        return group * self.layers_per_group + inner

    def is_local(self, layer: int) -> bool:
        """Say whether a layer attends inside the local window only."""
        return self.local_window > 0 and layer % self.global_every_n != 0
