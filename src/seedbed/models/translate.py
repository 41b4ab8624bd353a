"""Words shared by the families' translations to and from Hugging Face's `config.json`. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from seedbed.errors import IncompatibleError
from seedbed.models.config import Activation, TransformerConfig

__all__ = [
    "ClassifierForm",
    "ExtraHead",
    "Pooling",
    "Weight",
    "read_activation",
    "read_rope_scale",
    "read_special_ids",
    "refuse_unless",
    "required",
    "write_activation",
    "write_rope",
]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
}

_WRITTEN: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "silu": "silu",
    "relu": "relu",
    "relu_squared": "relu2",
}


@dataclass(frozen=True, slots=True)
class Weight:
    """Say which tensors of a Hugging Face folder make up one of ours.

    Attributes:
        name: our name, in `LanguageModel`.
        parts: their names; stacked along the rows in this order.
        rows: rows of each part; empty when there is one.
        is_transposed: theirs is stored (in, out), as GPT-2's.
        shape: shape of each part as theirs is stored, where it is not that of the matrix it is here (XLNet's (D, H, K)).
        copies: other names the same tensor is stored under: written too, and read when the first is missing.
        aliases: names of tied copies: not written, read when the first is missing, refused when they differ from it.
    """

    name: str
    parts: tuple[str, ...]
    rows: tuple[int, ...] = ()
    is_transposed: bool = False
    shape: tuple[int, ...] = ()
    copies: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtraHead:
    """Say where a family's folder keeps a head that is not the language model's.

    Attributes:
        architecture: the Hugging Face class that has it.
        weights: the map between our weights, named as in `LanguageModel`, and theirs.
    """

    architecture: str
    weights: list[Weight]


Pooling = Literal["first", "mean", "last"]


@dataclass(frozen=True, slots=True)
class ClassifierForm:
    """Say how a family's Hugging Face class for sentences is built from the features of a text.

    Attributes:
        architecture: the class.
        poolings: which features it can take: of the first token, the mean of all, of the last one; the default first.
        output: tensor name of the last linear layer, without ".weight".
        output_bias: that layer has an offset.
        dense: the same of the hidden layer before it, "" where there is none.
        activation: of the hidden layer; "head": that of the language model's head.
        norm: tensor name of the norm after it, "" where there is none.
    """

    architecture: str
    poolings: tuple[Pooling, ...]
    output: str
    output_bias: bool = True
    dense: str = ""
    activation: Literal["tanh", "gelu", "relu", "head"] = "tanh"
    norm: str = ""


def read_activation(name: Any) -> Activation:
    """Return our name of an activation."""
    if name not in _ACTIVATIONS:
        raise IncompatibleError(
            f"config.json asks for the activation {name!r}, which is not known here.",
            hint=f"known: {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[name]


def write_activation(name: Activation) -> str:
    """Return Hugging Face's name of an activation."""
    return _WRITTEN[name]


def read_rope_scale(rope: Mapping[str, Any]) -> float:
    """Return what positions are divided by, of `rope_parameters` (transformers 5) or `rope_scaling` (4, "type" before 4.43)."""
    kind = {"rope_type": rope.get("rope_type", rope.get("type", "default"))}
    refuse_unless(kind, "rope_type", "default", "linear")
    return float(required(rope, "factor")) if kind["rope_type"] == "linear" else 1.0


def write_rope(config: TransformerConfig) -> dict[str, Any]:
    """Return the `rope_parameters` of layers with global attention."""
    if config.rope_scale == 1.0:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {"rope_type": "linear", "factor": config.rope_scale, "rope_theta": config.rope_theta}


def required(data: Mapping[str, Any], key: str) -> Any:
    """Return a value that a `config.json` must hold."""
    if data.get(key) is None:
        raise IncompatibleError(f"config.json has no {key!r}.", hint="is this a complete model folder?")
    return data[key]


def refuse_unless(data: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuse a setting that would change the outputs in a way not built here; a missing key is the first of `allowed`."""
    if (found := data.get(key, allowed[0])) not in allowed:
        raise IncompatibleError(
            f"config.json has {key} = {found!r}; only {', '.join(map(repr, allowed))} can be read exactly.",
            hint="nothing was loaded, since its outputs would differ",
        )


def read_special_ids(data: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """Return the special ids a `config.json` names; of several ends of text the first; ids outside the vocabulary (Hugging Face's
    unused defaults) are left out.
    """
    found: dict[str, int] = {}
    for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start"):
        value = data.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and 0 <= value < vocab_size:
            found[name] = value
    return found
