"""Read and write model folders of Hugging Face `transformers`, without importing it.

A folder holds `config.json` and `model.safetensors` (or shards with an index). What cannot be carried over exactly is
refused by name; what is left out is reported. Heads that pretraining trained and the family has no place for are in
files of our own beside them (`extra_heads.py`). Tokenizer files are `tokenizer/`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seedbed.errors import DataError, IncompatibleError, IntegrityError, disk_errors
from seedbed.models import MODELS, family_of
from seedbed.models.config import TransformerConfig
from seedbed.models.extra_heads import read_extra_heads, write_extra_heads
from seedbed.models.heads import make_head
from seedbed.models.language_model import LanguageModel
from seedbed.models.presets import FamilyConfig
from seedbed.models.pretraining_heads import make_extras
from seedbed.models.translate import Weight
from seedbed.models.trunks import make_trunk
from seedbed.tensors import save_tensors

__all__ = ["expressed", "read_huggingface", "read_huggingface_apart", "write_huggingface"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_huggingface(folder: Path) -> tuple[LanguageModel, dict[str, str]]:
    """Open a model folder.

    Weights become float32 whatever they are stored as. A checkpoint without a language-model head gives a model whose
    `head` is None; heads of other pretraining objectives are its `extras`. As in `transformers`, an output matrix that
    differs from the embedding makes the model untied, whatever `config.json` says.

    Returns:
        The model, and the tensors that were left out with the reason.

    Raises:
        DataError: a file is missing.
        IntegrityError: a file is not what its name says.
        IncompatibleError: an unknown family, a setting or an activation not built here; missing, unexpected or misshapen tensors,
            all listed.
    """
    model, left_out, _ = read_huggingface_apart(folder, ())
    return model, left_out


def read_huggingface_apart(
    folder: Path, names: Collection[str]
) -> tuple[LanguageModel, dict[str, str], dict[str, Tensor]]:
    """Open a model folder and take the tensors of these names apart, as float32: those of a task's head.

    Returns:
        The model without them, what was left out with the reason, and the tensors that are there. Errors are those of
        `read_huggingface`.
    """
    data = _read_json(folder / "config.json")
    kind = data.get("model_type")
    family = family_of(kind)
    if family is None:
        known = [each.model_type or name for name, each in MODELS.items() if not each.native_reason]
        raise IncompatibleError(
            f"{folder} holds a model of type {kind!r}.", hint=f"families known here: {', '.join(known)}"
        )
    try:
        config = family.from_huggingface(data)
    except (ValidationError, ZeroDivisionError, TypeError) as error:
        raise IncompatibleError(f"{folder / 'config.json'} describes no valid model: {error}.") from error
    with ExitStack() as stack:
        stored = _Stored(folder, family, stack)
        apart = {name: stored.tensor(name) for name in names if name in stored.places}
        for name in apart:
            del stored.places[name]
        return *stored.load(config), apart


class _Stored:
    """The tensors of a folder under the names the class with a head gives them."""

    def __init__(self, folder: Path, family: type[FamilyConfig], stack: ExitStack) -> None:
        self.folder = folder
        self.family = family
        self.places: dict[str, tuple[Any, str]] = {}
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
                names = list(file.keys())
            except (SafetensorError, OSError) as error:
                raise IntegrityError(
                    f"{path} is not a safetensors file ({error}).", hint="fetch or copy the folder again"
                ) from error
            for name in names:
                self.places[self._canonical(name)] = (file, name)

    def _canonical(self, name: str) -> str:
        """Return a tensor's name in today's form, with the trunk's prefix."""
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        for pattern, today in self.family.renamed.items():
            name = re.sub(rf"^{pattern}", today, name)
        return self.family.prefix + name if name.split(".", 1)[0] in self.family.roots else name

    def tensor(self, name: str) -> Tensor:
        """Read one tensor as float32."""
        file, stored = self.places[name]
        try:
            tensor: Tensor = file.get_tensor(stored)
        except SafetensorError as error:
            raise IntegrityError(f"{self.folder}: tensor {stored} cannot be read ({error}).") from error
        return tensor.float()

    def load(self, config: TransformerConfig) -> tuple[LanguageModel, dict[str, str]]:
        """Build the model these tensors make and fill it."""
        family, places = self.family, self.places
        trunk_names = {part for weight in family.weights(config, has_head=False) for part in weight.parts}
        if config.tie_embeddings and family.head_matrix in places:
            config = self._settle_tie(config)
        head_names = {
            part for weight in family.weights(config, has_head=True) for part in weight.parts
        } - trunk_names
        has_head = not head_names or any(name in places for name in head_names)

        table = family.weights(config, has_head=has_head)
        extras = {
            name: extra
            for name, extra in family.extra_heads(has_head=has_head).items()
            if all(part in places for weight in extra.weights for part in weight.parts)
        }
        table += [weight for extra in extras.values() for weight in extra.weights]
        sources = {weight.name: self._sources(weight) for weight in table}
        used = {part for parts in sources.values() for part in parts}
        used |= {copy for weight in table for copy in (*weight.copies, *weight.aliases)}
        if config.tie_embeddings:
            used.add(family.head_matrix)
        left_out = {
            name: reason
            for name in places
            for pattern, reason in family.harmless.items()
            if name not in used and re.fullmatch(pattern, name)
        }
        missing = sorted(part for parts in sources.values() for part in parts if part not in places)
        unexpected = sorted(set(places) - used - set(left_out))
        self._refuse({"missing": missing, "unexpected": unexpected})

        trunk = make_trunk(config)
        model = LanguageModel(trunk, make_head(trunk) if has_head else None, make_extras(config, extras))
        parameters = dict(model.named_parameters())
        assert set(parameters) == set(sources), set(parameters) ^ set(sources)
        misshapen = []
        with torch.no_grad():
            for weight in table:
                parts = [self.tensor(part) for part in sources[weight.name]]
                target = parameters[weight.name]
                if weight.shape:
                    if wrong := [tuple(part.shape) for part in parts if tuple(part.shape) != weight.shape]:
                        misshapen.append(f"{' + '.join(sources[weight.name])} {wrong[0]} for {weight.shape}")
                        continue
                    parts = [_flattened(part, weight, target) for part in parts]
                value = torch.cat([part.T if weight.is_transposed else part for part in parts])
                if value.shape == target.shape:
                    target.copy_(value)
                else:
                    misshapen.append(
                        f"{' + '.join(sources[weight.name])} {tuple(value.shape)} for {tuple(target.shape)}"
                    )
        untied = [
            alias
            for weight in table
            for alias in weight.aliases
            if alias in places and not torch.equal(self.tensor(alias), self.tensor(sources[weight.name][0]))
        ]
        self._refuse({"misshapen": misshapen, "differing from what they should be tied to": untied})
        model.extras.update(read_extra_heads(self.folder, config))
        return model, left_out

    def _settle_tie(self, config: TransformerConfig) -> TransformerConfig:
        """Decide about an output matrix stored beside the embedding it should be tied to."""
        first = self.family.weights(config, has_head=False)[0]
        assert first.name.endswith("embedding.token.weight")
        (embedding,) = self._sources(first)
        if embedding not in self.places:
            self.places[embedding] = self.places.pop(self.family.head_matrix)
        elif not torch.equal(self.tensor(embedding), self.tensor(self.family.head_matrix)):
            return config.updated(tie_embeddings=False)
        return config

    def _sources(self, weight: Weight) -> tuple[str, ...]:
        """Return the names to read a weight from: a copy when the first is missing."""
        for copy in (*weight.copies, *weight.aliases):
            if weight.parts[0] not in self.places and copy in self.places:
                return (copy,)
        return weight.parts

    def _refuse(self, problems: Mapping[str, list[str]]) -> None:
        found = [f"{what} ({len(names)}): {', '.join(names)}" for what, names in problems.items() if names]
        if found:
            raise IncompatibleError(
                f"{self.folder}: the tensors do not fit {self.family.architectures[0]}; {'; '.join(found)}.",
                hint="nothing was loaded; is config.json of the same checkpoint?",
            )


def _flattened(part: Tensor, weight: Weight, target: Tensor) -> Tensor:
    """Return a tensor stored with more dimensions as the matrix or vector it is here (not yet transposed)."""
    width = target.shape[1:].numel()
    return part.reshape(width, -1) if weight.is_transposed else part.reshape(-1, *target.shape[1:])


def write_huggingface(
    model: LanguageModel,
    folder: Path,
    *,
    extra: Mapping[str, Any] | None = None,
    task_head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` so that `transformers` gives the same logits.

    Args:
        model: of a family in MODELS. Without a head the folder is of the family's bare class; with an extra head the
            family has a class for, of that class. Other extra heads go to `seedbed_heads.safetensors`.
        folder: existing or to be made.
        extra: more keys for `config.json`.
        task_head: tensors of a task's head under their names in the class that `extra["architectures"]` says.

    Raises:
        IncompatibleError: the model has something its family cannot express, each named.
        DiskError: the folder cannot be written.
    """
    config = model.config
    data = {**expressed(config), "dtype": "float32", **(extra or {})}
    family = MODELS[config.family]
    has_head = model.head is not None
    table = family.weights(config, has_head=has_head)
    placed = {name: e for name, e in family.extra_heads(has_head=has_head).items() if name in model.extras}
    for extra_head in placed.values():
        table += extra_head.weights
        data["architectures"] = [extra_head.architecture]
    prefix = ""
    if not has_head and not placed and task_head is None:
        data["architectures"] = [family.architectures[1]]
        prefix = family.prefix
    others = {name: head for name, head in model.extras.items() if name not in placed}
    beside = {f"extras.{name}.{key}" for name, head in others.items() for key, _ in head.named_parameters()}
    state = {name: p for name, p in model.named_parameters() if name not in beside}
    tensors: dict[str, Tensor] = {}
    for weight in table:
        value = state.pop(weight.name).detach().to("cpu", torch.float32)
        rows = list(weight.rows) or [value.shape[0]]
        for name, part in zip(weight.parts, torch.split(value, rows), strict=True):
            # Each tensor gets storage of its own: safetensors refuses views of one.
            part = (part.T if weight.is_transposed else part).clone(memory_format=torch.contiguous_format)
            part = part.view(weight.shape) if weight.shape else part
            tensors[name.removeprefix(prefix)] = part
        for copy in weight.copies:
            tensors[copy] = value.clone()
    assert not state, f"weights without a name in the family: {sorted(state)}"
    for name, value in (task_head or {}).items():
        tensors[name] = value.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
    with disk_errors(folder, doing="writing the model"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(
            json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        save_tensors(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
        write_extra_heads(others, folder)


_LOST_WITHOUT_HARM = {
    "initialisation",
    "initialisation_std",
    "special_ids",
    "hidden_dropout",
    "attention_dropout",
    "stochastic_depth",
}
"""What matters only before or while training: a family that cannot say it still gives the same outputs."""


def expressed(config: TransformerConfig) -> dict[str, object]:
    """Return a description as its family's `config.json`; call it before training what is to be exported.

    Raises:
        IncompatibleError: the family cannot express something that would change the outputs, each named.
    """
    family = MODELS.get(config.family)
    if family is None:
        raise IncompatibleError(
            f"a model of family {config.family!r} has no Hugging Face form.",
            hint=f"train one of {', '.join(MODELS)} to export it",
        )
    if family.native_reason:
        raise IncompatibleError(
            f"a model of family {config.family!r} has no Hugging Face form: {family.native_reason}.",
            hint=f"seedbed reads its own folder; to export one, train the nearest family, {family.nearest}",
        )
    data = family.to_huggingface(config)
    back = family.from_huggingface(data).model_dump(exclude=_LOST_WITHOUT_HARM)
    ours = config.model_dump(exclude=_LOST_WITHOUT_HARM)
    lost = [f"{key}={ours[key]!r} (would become {back[key]!r})" for key in ours if ours[key] != back[key]]
    if lost:
        raise IncompatibleError(
            f"the family {config.family} cannot express {', '.join(lost)}.",
            hint="choose another family, leave these keys out, or keep it in seedbed's form: training.model_form=seedbed",
        )
    return data


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}.",
            hint="a model folder holds config.json and model.safetensors",
        ) from error
    except ValueError as error:
        raise IntegrityError(
            f"{path} is not JSON ({error}).", hint="fetch or copy the folder again"
        ) from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{path} holds a {type(data).__name__}, not an object.")
    return data


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder; every shard the index names must be a plain name inside it."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        pickled = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern)
        )
        raise DataError(
            f"{folder} holds no {_WEIGHTS}"
            + (f", only pickled weights ({', '.join(pickled)})." if pickled else "."),
            hint="convert it with transformers: from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    shards = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise IntegrityError(f"{folder / _INDEX} has no weight_map.")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise IntegrityError(
                f"{folder / _INDEX} names a shard outside its folder: {name!r}.",
                hint="do not trust this folder",
            )
        if not (folder / name).is_file():
            raise DataError(f"{folder} lacks the shard {name}.", hint="fetch or copy the folder again")
    return [folder / name for name in names]
