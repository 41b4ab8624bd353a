"""Make a larger model out of a smaller one, as a start: more layers (`stack_layers`), or wider ones (`widen`).

Both return a new model of the same family, which exports where the small one did. What each keeps of the function is said and
tested; what is not kept exactly is a start all the same, and usually a better one than random weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from seedbed.errors import IncompatibleError
from seedbed.models.config import TransformerConfig
from seedbed.models.language_model import LanguageModel
from seedbed.models.trunks import make_trunk

__all__ = ["Depth", "stack_layers", "widen"]

Depth = Literal["stack", "interleave", "identity"]

_LAYER = re.compile(r"^trunk\.layers\.(\d+)\.(.*)$")
_WRITES = re.compile(r"^(attention|feed_forward)\.output\.(weight|bias)$")
_STARTS = {"residual_scalar": 1.0, "shortcut_scalar": 0.0, "value_scalar": 0.5}


@torch.no_grad()
def stack_layers(model: LanguageModel, num_layers: int, *, how: Depth = "stack") -> LanguageModel:
    """Return a deeper model whose added layers are copies.

    - `stack`: layer i copies layer i mod L, the whole stack upon itself (Gong et al., "Efficient training of BERT by
      progressively stacking", ICML 2019; best of its kind for decoders in 2405.15319). The function is not kept: the loss jumps,
      and falls back within a small part of the training it saves.
    - `interleave`: layer i copies layer floor(i L / L'), each layer repeated in place (1710.10348). Not kept either.
    - `identity`: the added layers lie on top, copies as in `stack` but with output projections of 0 (and residual scalars at
      their start), so they pass their input on: the same logits, to the bit. Pre-norm models only: after a post-norm sum the
      norm's scale and offset would act a second time.

    Where the first layer has no norm (ModernBERT) or no scalars (the native block), copies of it elsewhere get fresh ones.

    Args:
        model: of one stack, without shared layers; it is not changed.
        num_layers: L', more than now.
        how: see above.

    Raises:
        IncompatibleError: fewer layers than now, shared layers, two stacks, or `identity` of a post-norm model.
    """
    config = model.config
    _refuse_stacks(config)
    if num_layers <= config.num_layers:
        raise IncompatibleError(
            f"the model has {config.num_layers} layers; {num_layers} are not more.",
            hint="give a larger number",
        )
    if config.num_layer_groups:
        raise IncompatibleError(
            "the layers of this model share their weights: there is nothing to copy.",
            hint="raise num_layers in its description; the weights stay",
        )
    if how == "identity" and config.norm_place == "post":
        raise IncompatibleError(
            "a post-norm layer cannot pass its input on: its norms act even where nothing is added.",
            hint="take how='stack', or grow a pre-norm model",
        )
    count = config.num_layers
    source = [i * count // num_layers if how == "interleave" else i % count for i in range(num_layers)]
    parts: dict[int, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters():
        if place := _LAYER.match(name):
            parts.setdefault(int(place[1]), {})[place[2]] = tensor
        else:
            tensors[name] = tensor
    grown = config.updated(num_layers=num_layers)
    # What only later layers have: the names in a layer that is not the first, of a model that has one.
    shape_of = _layer_shapes(grown)
    for index in range(num_layers):
        is_silent = how == "identity" and index >= count
        for part, shape in shape_of[min(index, 1)].items():
            value = parts[source[index]].get(part)
            if value is None or (is_silent and part in _STARTS):
                start = _STARTS.get(part, 0.0 if part.endswith("bias") else 1.0)
                value = torch.full(shape, start)
            if is_silent and _WRITES.match(part):
                value = torch.zeros_like(value)
            tensors[f"trunk.layers.{index}.{part}"] = value
    return _assembled(model, grown, tensors)


def _layer_shapes(config: TransformerConfig) -> list[dict[str, torch.Size]]:
    """Return names and shapes of the weights of the first and of any later layer."""
    with torch.device("meta"):
        trunk = make_trunk(config.updated(num_layers=2))
    shapes: list[dict[str, torch.Size]] = [{}, {}]
    for name, parameter in trunk.named_parameters():
        if place := _LAYER.match(f"trunk.{name}"):
            shapes[int(place[1])][place[2]] = parameter.shape
    return shapes


@torch.no_grad()
def widen(
    model: LanguageModel,
    *,
    factor: int = 1,
    ffn_size: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> LanguageModel:
    """Return a wider model that gives the same logits (to rounding; with `noise` nearly).

    The residual stream, the heads and their keys are copied `factor` times, head width unchanged; whatever reads a copied
    vector is divided by the number of copies (Net2WiderNet, 1511.05641; bert2BERT's function-preserving initialisation,
    2110.07143). A whole factor is what keeps this exact: mean and variance of a vector repeated a whole number of times are those
    of the vector, so LayerNorm and RMSNorm give the repeated output; with any other number of channels they do not. The
    feed-forward block has no norm inside, so it takes any size (with `inner_norm` a multiple): unit j copies unit j mod F.

    A tied head would see its logits multiplied by `factor`; that is divided out of the last norm before it or, where norms hold
    no scale, out of the embeddings, whose own norm takes it back (`norm_eps` shrinks along, so this too is exact).

    Copies that are equal stay equal while they train. `noise` is what tells them apart: copied rows of queries, keys, values and
    feed-forward units are moved by N(0, noise x their standard deviation); 0.01 moves the logits by about as little.

    Args:
        model: of one stack with dot-product attention and no other heads; it is not changed.
        factor: times the hidden size, heads, key-value heads and feed-forward size.
        ffn_size: feed-forward size instead, at least as large as now.
        noise: relative standard deviation.
        seed: of the noise.

    Raises:
        IncompatibleError: nothing to grow, or a part that no widening keeps: sinusoidal tables and ALiBi slopes depend on width
            and heads, an inner norm on a size that is no multiple, a tied head on a norm before it.
    """
    config = model.config
    _refuse_stacks(config)
    wide = ffn_size or config.ffn_size * factor
    if factor < 1 or wide < config.ffn_size or (factor == 1 and wide == config.ffn_size):
        raise IncompatibleError(
            f"factor {factor} and ffn_size {wide} make nothing wider (ffn_size is {config.ffn_size}).",
            hint="factor=2 doubles everything; ffn_size alone widens the feed-forward blocks",
        )
    problems = []
    if config.attention_kind != "dot_product":
        problems.append(f"attention_kind={config.attention_kind} has parts whose copies are not known")
    if factor > 1 and config.positions in ("sinusoidal", "alibi", "relative"):
        problems.append(f"{config.positions} positions depend on width or heads")
    if factor > 1 and model.extras:
        problems.append(f"the heads {', '.join(model.extras)} would have to be widened too")
    if config.inner_norm and wide % config.ffn_size:
        problems.append(f"inner_norm needs an ffn_size that is a multiple of {config.ffn_size}")
    if problems:
        raise IncompatibleError(
            f"widening cannot keep what this model computes: {'; '.join(problems)}.",
            hint="stack_layers grows it in depth instead",
        )
    changes: dict[str, Any] = {
        "hidden_size": config.hidden_size * factor,
        "num_heads": config.num_heads * factor,
        "num_kv_heads": config.num_kv_heads * factor,
        "ffn_size": wide,
    }
    copies = _Copies(config, factor, wide)
    if factor > 1 and config.tie_embeddings and model.head is not None and not config.embedding_size:
        changes |= copies.settle_tied_head()
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in model.named_parameters():
        wider = copies.widened(name, tensor.detach().cpu())
        tensors[name] = copies.moved(name, wider, noise, draw) if noise else wider
    return _assembled(model, config.updated(**changes), tensors)


class _Copies:
    """Say for each weight which of its rows and columns are copied, and by what it is divided."""

    def __init__(self, config: TransformerConfig, factor: int, ffn_size: int) -> None:
        self.config = config
        self.factor = factor
        units = torch.arange(ffn_size) % config.ffn_size
        self.units = units
        # A copied unit's output is shared by its copies.
        self.unit_shares = 1.0 / torch.bincount(units, minlength=config.ffn_size)[units].float()
        self.embedding, self.final_norm, self.head_norm = 1.0, 1.0, 1.0

    def settle_tied_head(self) -> dict[str, float]:
        """Decide where a tied head's factor is divided out; returns what changes in the description."""
        config, share = self.config, 1 / self.factor
        if config.head_transform and config.norm_scale:
            self.head_norm = share
        elif config.has_final_norm and config.norm_scale and not config.head_transform:
            self.final_norm = share
        elif config.has_embedding_norm and not config.norm_scale:
            self.embedding = share
            return {"norm_eps": config.norm_eps / self.factor**2}
        else:
            raise IncompatibleError(
                "widening cannot keep the logits of a tied head with no scaled norm before it.",
                hint="train it untied (tie_embeddings=False), or grow it in depth",
            )
        return {}

    def rows(self, tensor: Tensor) -> Tensor:
        """Copy what is written to the residual stream, or scaled there."""
        return tensor.repeat(self.factor, *[1] * (tensor.ndim - 1))

    def columns(self, tensor: Tensor) -> Tensor:
        """Copy what reads a copied vector, each copy with its share."""
        return tensor.repeat(1, self.factor) / self.factor

    def heads(self, tensor: Tensor) -> Tensor:
        """Copy the rows of queries, keys and values, each for itself."""
        config = self.config
        sizes = [n * config.head_dim for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        return torch.cat([self.rows(part) for part in torch.split(tensor, sizes)])

    def inner(self, tensor: Tensor) -> Tensor:
        """Copy the rows of feed-forward units, of each half where it is gated."""
        parts = torch.split(tensor, self.config.ffn_size)
        return torch.cat([part[self.units] for part in parts])

    def widened(self, name: str, tensor: Tensor) -> Tensor:
        """Return a weight of the wider model."""
        is_narrow = bool(self.config.embedding_size)
        part = place[2] if (place := _LAYER.match(name)) else name
        rules: dict[str, Callable[[Tensor], Tensor]] = {
            "attention.qkv.weight": lambda t: self.columns(self.heads(t)),
            "attention.qkv.bias": self.heads,
            "attention.gate.weight": lambda t: self.columns(self.rows(t)),
            "attention.output.weight": lambda t: self.columns(self.rows(t)),
            "feed_forward.input.weight": lambda t: self.columns(self.inner(t)),
            "feed_forward.input.bias": self.inner,
            "feed_forward.inner_norm.weight": self.inner,
            "feed_forward.inner_norm.bias": self.inner,
            "feed_forward.output.weight": lambda t: self.rows(t[:, self.units] * self.unit_shares),
            "head.dense.weight": lambda t: self.columns(t if is_narrow else self.rows(t)),
            "head.weight": lambda t: t if is_narrow else self.columns(t),
            "head.bias": lambda t: t,
        }
        if part in rules:
            return rules[part](tensor)
        if part.endswith("_scalar"):
            return tensor
        if part.startswith("trunk.embedding.") and not part.startswith("trunk.embedding.projection"):
            if is_narrow:
                return tensor
            wide = tensor.repeat(1, self.factor) if tensor.ndim == 2 else self.rows(tensor)
            return wide if ".norm." in part else wide * self.embedding
        if part.startswith("head.") and is_narrow:
            return tensor
        scale = self.final_norm if part.startswith("trunk.final_norm.") else 1.0
        scale = self.head_norm if part.startswith("head.norm.") else scale
        return self.rows(tensor) * scale

    def moved(self, name: str, tensor: Tensor, noise: float, draw: torch.Generator) -> Tensor:
        """Return a weight whose copied rows are moved at random, where copies would otherwise stay equal."""
        if not name.endswith(("attention.qkv.weight", "feed_forward.input.weight")):
            return tensor
        is_copy = torch.ones(tensor.shape[0], dtype=torch.bool)
        config, start = self.config, 0
        if "qkv" in name:
            for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads):
                is_copy[start : start + heads * config.head_dim] = False
                start += heads * config.head_dim * self.factor
        else:
            for start in range(0, tensor.shape[0], len(self.units)):
                is_copy[start : start + config.ffn_size] = False
        values = torch.randn(tensor.shape, generator=draw) * (noise * float(tensor.std()))
        return tensor + values * is_copy[:, None]


def _refuse_stacks(config: TransformerConfig) -> None:
    if config.stack == "encoder_decoder":
        raise IncompatibleError(
            "growing encoder-decoders is not built.", hint="grow an encoder or a decoder of one stack"
        )


def _assembled(model: LanguageModel, config: TransformerConfig, tensors: dict[str, Tensor]) -> LanguageModel:
    return LanguageModel.of(
        config, tensors, has_head=model.head is not None, extras=list(model.extras), source="the grown model"
    )
