"""A trunk with a head that judges whole texts: classes or a number. Reads and writes Hugging Face's classes for it.

A family's `classifier` says how its class is built, and our head is built like it, so that the export is exact. Families without
one, and choices their class cannot express, are kept in our own form, which every model has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from seedbed.artifact import verify_if_artifact
from seedbed.errors import DataError, IncompatibleError, IntegrityError, disk_errors
from seedbed.models import MODELS, family_of
from seedbed.models.config import TransformerConfig
from seedbed.models.folder import CONFIG_FILES, read_model
from seedbed.models.heads import MaskedLMHead
from seedbed.models.huggingface import (
    expressed,
    read_huggingface_apart,
    write_huggingface,
)
from seedbed.models.init import init_linear
from seedbed.models.language_model import LanguageModel
from seedbed.models.layers.feed_forward import activate
from seedbed.models.layers.norm import make_norm
from seedbed.models.translate import ClassifierForm, Pooling
from seedbed.tensors import load_tensors, save_tensors

__all__ = [
    "Classifier",
    "ClassifierHead",
    "form_of",
    "read_classifier",
    "read_pretrained",
    "write_classifier",
]

_OWN = "classifier.json"
_OWN_WEIGHTS = "classifier.safetensors"
_HF_POOLINGS: dict[Pooling, str] = {"first": "cls", "mean": "mean", "last": "last"}

_OWN_ENCODER = ClassifierForm("", ("first", "mean"), output="output", dense="dense")
_OWN_DECODER = ClassifierForm("", ("last", "mean"), output="output", output_bias=False)


def form_of(config: TransformerConfig) -> ClassifierForm:
    """Return how a model's head for texts is built: as its family's class, else as BERT's (encoders) or a plain matrix."""
    family = MODELS.get(config.family)
    if family is not None and family.classifier is not None:
        return family.classifier
    return _OWN_DECODER if config.is_causal else _OWN_ENCODER


class ClassifierHead(nn.Module):
    """Turn pooled features (N, D) into logits (N, C): a hidden layer where the family's class has one, and a matrix."""

    def __init__(self, config: TransformerConfig, num_outputs: int) -> None:
        super().__init__()
        self.config = config
        self.form = form_of(config)
        width = config.hidden_size
        has_bias = config.head_transform_bias if self.form.activation == "head" else True
        self.dense = nn.Linear(width, width, bias=has_bias) if self.form.dense else None
        self.norm = make_norm(config) if self.form.norm else None
        self.output = nn.Linear(width, num_outputs, bias=self.form.output_bias)

    def initialise(
        self, seed: int, head: nn.Module | None = None, hidden: Mapping[str, Tensor] | None = None
    ) -> None:
        """Give weights their initial values, the same for the same seed.

        What was pretrained is kept, as in transformers: where the family's class shares its hidden layer and norm with the
        masked model's head (ModernBERT) they come from `head`, and a pooler (BERT) from `hidden`, see `read_pretrained`.
        """
        init_linear(self, self.config, seed=seed)
        if hidden and self.dense is not None:
            self.dense.load_state_dict(dict(hidden))
        if self.form.norm and isinstance(head, MaskedLMHead) and head.dense is not None:
            assert self.dense is not None
            self.dense.load_state_dict(head.dense.state_dict())
            if self.norm is not None and head.norm is not None:
                self.norm.load_state_dict(head.norm.state_dict())

    def transform(self, features: Tensor) -> Tensor:
        """Return the features (N, D) the last matrix is applied to; dropout belongs between the two."""
        if self.dense is None:
            return features
        features = self.dense(features)
        kind = self.config.head_activation if self.form.activation == "head" else self.form.activation
        features = torch.tanh(features) if kind == "tanh" else activate(features, kind)
        return features if self.norm is None else self.norm(features)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of features (N, D)."""
        logits: Tensor = self.output(self.transform(features))
        return logits


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model that judges texts.

    Attributes:
        model: its trunk; the language model's head is not used.
        head: features to logits.
        pooling: which features.
        labels: class names in the order of the outputs; empty for a regression.
    """

    model: LanguageModel
    head: ClassifierHead
    pooling: Pooling
    labels: tuple[str, ...] = ()

    def export_problem(self) -> str:
        """Return why the family's Hugging Face class cannot hold this model, or ""."""
        config = self.model.config
        family = MODELS.get(config.family)
        if family is None or family.classifier is None:
            return f"the family {config.family!r} has no class for texts here"
        if self.pooling not in family.classifier.poolings:
            return f"{family.classifier.architecture} cannot pool by {self.pooling!r}"
        try:
            expressed(config)
        except IncompatibleError as error:
            return error.message
        return ""


def read_pretrained(folder: Path) -> tuple[LanguageModel, dict[str, Tensor]]:
    """Open a model folder for fine-tuning: the model, and its pretrained pooler ("weight", "bias"), empty where it has none."""
    form = None
    if not (folder / CONFIG_FILES["seedbed"]).is_file():
        family = family_of(_read(folder / "config.json").get("model_type"))
        form = None if family is None else family.classifier
    if form is None or not form.dense or form.activation == "head":
        model, _ = read_model(folder)
        return model, {}
    names = {f"{form.dense}.{kind}": kind for kind in ("weight", "bias")}
    model, _, apart = read_huggingface_apart(folder, names)
    return model, {names[name]: value for name, value in apart.items()}


def write_classifier(classifier: Classifier, folder: Path) -> str:
    """Write a folder: of the family's Hugging Face class where it can hold the model, else in our own form.

    Returns:
        "" for a Hugging Face folder, else why it is in our own form.
    """
    trunk = LanguageModel(classifier.model.trunk, None)
    labels = list(classifier.labels)
    head = {name: p.detach().cpu().contiguous() for name, p in classifier.head.named_parameters()}
    if problem := classifier.export_problem():
        trunk.save(folder)
        data = {"format": 1, "pooling": classifier.pooling, "labels": labels}
        with disk_errors(folder, doing="writing the model"):
            (folder / _OWN).write_text(
                json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            save_tensors(head, folder / _OWN_WEIGHTS, metadata={"format": "pt"})
        return problem
    form = classifier.head.form
    names = labels or ["score"]
    extra = {
        "architectures": [form.architecture],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification" if labels else "regression",
    }
    if len(form.poolings) > 1:
        extra["classifier_pooling"] = _HF_POOLINGS[classifier.pooling]
    stored = _stored_names(form)
    write_huggingface(
        trunk, folder, extra=extra, task_head={stored[name]: value for name, value in head.items()}
    )
    return ""


def read_classifier(folder: Path) -> Classifier:
    """Read what `write_classifier` wrote, or a Hugging Face folder of a known class for texts.

    Raises:
        DataError: the folder holds no classifier.
        IncompatibleError: a class, a pooling or weights that do not fit.
        IntegrityError: a file is damaged.
    """
    verify_if_artifact(folder)
    if (folder / _OWN).is_file():
        data = _read(folder / _OWN)
        model = LanguageModel.load(folder)
        labels, pooling = tuple(data["labels"]), cast(Pooling, data["pooling"])
        tensors = load_tensors(folder / _OWN_WEIGHTS)
    else:
        data = _read(folder / "config.json")
        family = family_of(data.get("model_type"))
        form = None if family is None else family.classifier
        if form is None or data.get("architectures") != [form.architecture]:
            raise DataError(
                f"{folder} holds {data.get('architectures')}, not a model that judges texts.",
                hint="give the model folder of a fine-tuned run",
            )
        is_regression = data.get("problem_type") == "regression"
        labels = () if is_regression else _labels(data.get("id2label", {}))
        wanted = _stored_names(form)
        model, _, apart = read_huggingface_apart(folder, wanted.values())
        tensors = {ours: apart[theirs] for ours, theirs in wanted.items() if theirs in apart}
        named = {their: ours for ours, their in _HF_POOLINGS.items()}
        pooling = named[data.get("classifier_pooling", "cls")] if len(form.poolings) > 1 else form.poolings[0]
    head = ClassifierHead(model.config, len(labels) or 1)
    own = {name: tuple(p.shape) for name, p in head.named_parameters()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if own != found:
        raise IncompatibleError(
            f"{folder}: the head has {found}, a model of this description needs {own}.",
            hint="copy the folder again",
        )
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(tensors[name])
    return Classifier(model, head, pooling, labels)


def _stored_names(form: ClassifierForm) -> dict[str, str]:
    """Return Hugging Face's tensor names of a head by ours; some may not exist in a model without offsets."""
    parts = {"dense": form.dense, "norm": form.norm, "output": form.output}
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in parts.items()
        if theirs
        for kind in ("weight", "bias")
    }


def _labels(id2label: Any) -> tuple[str, ...]:
    if not isinstance(id2label, dict) or sorted(id2label, key=int) != [str(i) for i in range(len(id2label))]:
        raise IncompatibleError(f"config.json has id2label {id2label!r}, which does not number the classes.")
    names: Sequence[Any] = [id2label[str(i)] for i in range(len(id2label))]
    return tuple(str(name) for name in names)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}.", hint="give the model folder of a fine-tuned run"
        ) from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON ({error}).", hint="copy the folder again") from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{path} holds a {type(data).__name__}, not an object.")
    return data
