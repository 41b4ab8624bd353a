"""Model folders in either form: Hugging Face's, or seedbed's own where no family there has the model's block.

The tokenizer's files beside the weights are `tokenizer/`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from seedbed.artifact import write_json
from seedbed.errors import DataError, IntegrityError, disk_errors
from seedbed.models import MODELS
from seedbed.models.config import TransformerConfig
from seedbed.models.huggingface import expressed, read_huggingface, write_huggingface
from seedbed.models.language_model import LanguageModel

__all__ = [
    "CONFIG_FILES",
    "ModelForm",
    "holds_model",
    "read_model",
    "read_objectives",
    "settle_form",
    "write_model",
]

_TRAINING = "training.json"

ModelForm = Literal["huggingface", "seedbed"]

CONFIG_FILES: dict[ModelForm, str] = {"huggingface": "config.json", "seedbed": "transformer.json"}
"""The file a folder of each form is known by."""


def settle_form(config: TransformerConfig, wanted: Literal["auto", "huggingface", "seedbed"]) -> ModelForm:
    """Return the form a model will be written in; call it before training.

    `auto` is Hugging Face's form, unless the family is one of seedbed's own.

    Raises:
        IncompatibleError: Hugging Face's form cannot express the description; names what and the nearest family.
    """
    family = MODELS.get(config.family)
    is_own = family is None or bool(family.native_reason)
    if wanted == "seedbed" or (wanted == "auto" and is_own):
        return "seedbed"
    expressed(config)
    return "huggingface"


def write_model(
    model: LanguageModel, folder: Path, *, form: ModelForm, objectives: Sequence[str] = ()
) -> None:
    """Write weights and description in one form, and `training.json`: what the model was trained to do.

    Raises:
        IncompatibleError: Hugging Face's form cannot express the model.
        DiskError: the folder cannot be written.
    """
    if form == "huggingface":
        write_huggingface(model, folder)
    else:
        model.save(folder)
    if objectives:
        with disk_errors(folder, doing="writing"):
            write_json(folder / _TRAINING, {"format": 1, "objectives": list(objectives)})


def read_objectives(folder: Path) -> tuple[str, ...]:
    """Return the objectives a model folder says it was trained by; empty for folders of other origin.

    Raises:
        IntegrityError: the file that says so is damaged.
    """
    path = folder / _TRAINING
    if not path.is_file():
        return ()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["objectives"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged ({error}).", hint="copy the folder again") from error
    return tuple(map(str, found))


def holds_model(folder: Path) -> bool:
    """Say whether a folder is a model folder of either form."""
    return any((folder / name).is_file() for name in CONFIG_FILES.values())


def read_model(folder: Path) -> tuple[LanguageModel, dict[str, str]]:
    """Open a model folder of either form.

    Returns:
        The model, and the tensors that were left out with the reason (none in our own form).

    Raises:
        DataError: it is no model folder, or lacks a file.
        IncompatibleError, IntegrityError: see `read_huggingface` and `LanguageModel.load`.
    """
    if not holds_model(folder):
        raise DataError(
            f"{folder} holds no model (neither {' nor '.join(CONFIG_FILES.values())}).",
            hint="give a run folder, its model folder, or a Hugging Face folder",
        )
    if (folder / CONFIG_FILES["seedbed"]).is_file():
        return LanguageModel.load(folder), {}
    return read_huggingface(folder)
