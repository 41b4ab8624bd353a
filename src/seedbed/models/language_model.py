"""A trunk with its heads: what is trained, saved, loaded and used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from seedbed.batch import Batch, Hidden
from seedbed.config import validate
from seedbed.errors import DataError, IncompatibleError, IntegrityError, disk_errors
from seedbed.models.config import TransformerConfig
from seedbed.models.heads import LMHead, make_head
from seedbed.models.init import init_weights
from seedbed.models.pretraining_heads import make_extras
from seedbed.models.trunks import Trunk, make_trunk
from seedbed.tensors import load_tensors, save_tensors

__all__ = ["LanguageModel", "build_model"]

_CONFIG = "transformer.json"
_WEIGHTS = "transformer.safetensors"


class LanguageModel(nn.Module):
    """Bundle a trunk and its language-model head. Without one (an encoder-only checkpoint) it gives hidden states only.

    `extras` are other heads that pretraining trained, by their name in `EXTRA_HEADS`; they are saved and exported too.
    """

    def __init__(
        self, trunk: Trunk, head: LMHead | None, extras: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.extras = nn.ModuleDict(dict(extras or {}))

    @property
    def config(self) -> TransformerConfig:
        """Return the description of the trunk and head."""
        return self.trunk.config

    def forward(self, batch: Batch) -> Hidden:
        """Run the trunk without dropout."""
        hidden: Hidden = self.trunk(batch)
        return hidden

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (..., V) of features (..., D)."""
        if self.head is None:
            raise IncompatibleError(
                "this model has no language-model head.",
                hint="it gives hidden states only; train or load a head",
            )
        logits: Tensor = self.head(features)
        return logits

    def logits_at(self, hidden: Hidden, at: Tensor) -> Tensor:
        """Return logits (N, V) at flat positions (N,) of (B * T)."""
        return self.logits(hidden.last.flatten(0, 1).index_select(0, at))

    def save(self, folder: Path) -> None:
        """Write `transformer.json` and `transformer.safetensors`: our own form, for every model; shared weights once."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        data = {"format": 1, "has_head": self.head is not None, "config": self.config.model_dump(mode="json")}
        if self.extras:
            data["extras"] = list(self.extras)
        with disk_errors(folder, doing="writing the model"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
            save_tensors(tensors, folder / _WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing.
            IntegrityError: a file is damaged.
            IncompatibleError: another format version, or weights that do not fit the description, all listed.
        """
        try:
            data = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            tensors = load_tensors(folder / _WEIGHTS)
        except FileNotFoundError as error:
            raise DataError(
                f"{error.filename or folder / _WEIGHTS} does not exist.",
                hint="is this the folder of a model?",
            ) from error
        except ValueError as error:
            raise IntegrityError(f"{folder} is damaged: {error}.", hint="copy the folder again") from error
        if not isinstance(data, dict) or data.get("format") != 1:
            raise IncompatibleError(
                f"{folder / _CONFIG} is not of format 1.",
                hint="open it with the version of seedbed that wrote it",
            )
        config = validate(TransformerConfig, data.get("config", {}), place=str(folder / _CONFIG))
        return cls.of(
            config,
            tensors,
            has_head=bool(data.get("has_head")),
            extras=data.get("extras", []),
            source=str(folder),
        )

    @classmethod
    def of(
        cls,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        *,
        has_head: bool,
        extras: Sequence[str] = (),
        source: str = "the model",
    ) -> Self:
        """Return the model a description and its weights make; weights are copied.

        Args:
            config: the description.
            tensors: every weight by its name in `named_parameters`.
            has_head: it has a language-model head.
            extras: names of its other heads.
            source: what an error names.

        Raises:
            IncompatibleError: weights and description do not fit, all listed.
        """
        trunk = make_trunk(config)
        model = cls(trunk, make_head(trunk) if has_head else None, make_extras(config, extras))
        own = {name: tuple(p.shape) for name, p in model.named_parameters()}
        stored = {name: tuple(t.shape) for name, t in tensors.items()}
        if own != stored:
            wrong = sorted(set(own.items()) ^ set(stored.items()))
            raise IncompatibleError(
                f"{source}: weights and description differ at {', '.join(f'{n} {s}' for n, s in wrong)}.",
                hint="copy the folder again",
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[name])
        return model


def build_model(config: TransformerConfig, *, seed: int) -> LanguageModel:
    """Return a new, initialised model; the same seed gives the same weights."""
    trunk = make_trunk(config)
    head = make_head(trunk)
    init_weights(trunk, head, seed=seed)
    return LanguageModel(trunk, head)
