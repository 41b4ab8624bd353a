"""Keep pretraining heads that a Hugging Face folder has no place for in two files of our own beside it.

`seedbed_heads.safetensors` holds the weights, `seedbed_heads.json` what they are. `transformers` ignores both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from seedbed.errors import IncompatibleError, IntegrityError
from seedbed.models.config import TransformerConfig
from seedbed.models.pretraining_heads import PAIR_LABELS, REPLACED_LABELS, make_extras
from seedbed.tensors import load_tensors, save_tensors

__all__ = ["read_extra_heads", "write_extra_heads"]

_DESCRIPTION = "seedbed_heads.json"
_WEIGHTS = "seedbed_heads.safetensors"
_FORMAT = 1

_MEANINGS: dict[str, dict[str, object]] = {
    "sentence_pair": {
        "reads": "last hidden state of the first token",
        "layers": ["pooler.dense", "tanh", "classifier"],
        "labels": PAIR_LABELS,
    },
    "replaced_token": {
        "reads": "last hidden state of each token",
        "layers": ["dense", "activation of the model", "classifier"],
        "labels": REPLACED_LABELS,
    },
}
"""For whoever finds the files: how to compute the logits, and what label 0 and label 1 mean."""


def write_extra_heads(heads: Mapping[str, nn.Module], folder: Path) -> None:
    """Write heads, by their name in `EXTRA_HEADS`, into a folder; without any, the folder has neither file afterwards."""
    for name in (_DESCRIPTION, _WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    if not heads:
        return
    tensors = {
        f"{name}.{key}": parameter.detach().to("cpu", torch.float32).contiguous()
        for name, head in heads.items()
        for key, parameter in head.named_parameters()
    }
    data = {"format": _FORMAT, "heads": {name: _MEANINGS[name] for name in heads}}
    (folder / _DESCRIPTION).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    save_tensors(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def read_extra_heads(folder: Path, config: TransformerConfig) -> dict[str, nn.Module]:
    """Return the heads stored beside a model; none where the folder has no such files.

    Raises:
        IntegrityError: a file is missing or damaged.
        IncompatibleError: another format, an unknown head, or weights that do not fit.
    """
    if not (folder / _DESCRIPTION).is_file() and not (folder / _WEIGHTS).is_file():
        return {}
    try:
        data = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        tensors = load_tensors(folder / _WEIGHTS)
    except (FileNotFoundError, ValueError) as error:
        raise IntegrityError(
            f"{folder}: {_DESCRIPTION} and {_WEIGHTS} are not whole ({error}).", hint="copy the folder again"
        ) from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT or not isinstance(data.get("heads"), dict):
        raise IncompatibleError(
            f"{folder / _DESCRIPTION} is not of format {_FORMAT}.",
            hint="open it with the version of seedbed that wrote it",
        )
    heads = make_extras(config, data["heads"])
    own = {f"{name}.{key}": p for name, head in heads.items() for key, p in head.named_parameters()}
    wrong = set(own) ^ set(tensors) | {n for n in own if n in tensors and own[n].shape != tensors[n].shape}
    if wrong:
        raise IncompatibleError(
            f"{folder / _WEIGHTS} does not fit the model at {', '.join(sorted(wrong))}.",
            hint="nothing was loaded; are the files of the same checkpoint?",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
    return heads
