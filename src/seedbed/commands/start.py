"""Open the model a run starts from: check that it fits, change it as asked, and say what was taken, what is new, what is left.

Also the old text of a continued run: its token store, whose rows may be replayed and whose targets are scored along the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seedbed.api import model_folder
from seedbed.artifact import (
    MANIFEST,
    Artifact,
    digest_of,
    file_digest,
    open_verified,
    read_sealed_json,
    verify_if_artifact,
)
from seedbed.data.store import TokenStore
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.models.config import TransformerConfig
from seedbed.models.extend_positions import extend_positions
from seedbed.models.extend_vocabulary import extend_vocabulary
from seedbed.models.folder import read_model
from seedbed.models.grow import stack_layers, widen
from seedbed.models.heads import LMHead, make_head
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.models.presets import PRESETS, FamilyConfig
from seedbed.recipe import Recipe
from seedbed.tokenizer.extend import is_extension, pieces_of_new
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.start import StartConfig
from seedbed.training.state import TrainingState

__all__ = ["OldText", "Start", "open_old_text", "open_start", "start_tokenizer"]

_MAY_CHANGE = ("hidden_dropout", "attention_dropout", "stochastic_depth")
"""Keys of `model` that change no output of a finished model, so that a run may choose them anew."""


@dataclass(slots=True)
class Start:
    """Hold an opened start.

    Attributes:
        folder: the model folder.
        run: the run it belongs to, or None.
        digest: hash over everything that is taken from it.
        model: trunk and head, changed as asked; the head is new where the folder has none.
        extras: further heads of the folder, by name; `adopt` gives them to objectives that train them.
        model_section: what stands for the `model` section in the resolved recipe.
        checkpoint: whose weights and moments are taken on, with `optimizer: continue`.
        report: JSON values: taken, changed, new, left_out.
    """

    folder: Path
    run: Path | None
    digest: str
    model: LanguageModel
    extras: dict[str, nn.Module]
    model_section: dict[str, Any]
    checkpoint: Artifact | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def adopt(self, modules: Sequence[Mapping[str, nn.Module]]) -> None:
        """Give the folder's further heads to the modules of the same name, and complete the report."""
        used = set()
        for own in modules:
            for name, module in own.items():
                if name in self.extras:
                    module.load_state_dict(self.extras[name].state_dict())
                    used.add(name)
        named = {name for own in modules for name in own} - {"trunk", "head"} - used
        if "head" in self.report["new"] and not any("head" in own for own in modules):
            self.report["new"].remove("head")
        self.report["taken"] += sorted(used)
        if self.checkpoint is None:
            self.report["new"] += sorted(named)
        for name in sorted(set(self.extras) - used):
            self.report["left_out"][f"{name} (a head)"] = "no objective of this run trains it"

    def take_on(self, state: TrainingState) -> None:
        """Load the last state of the start's run: all its weights, and the optimizer's moments."""
        if self.checkpoint is not None:
            folder = self.checkpoint.path.parent
            try:
                Checkpoints(folder, inputs={}).load_parts_and_moments(state, self.checkpoint)
            except IncompatibleError as error:
                raise IncompatibleError(
                    f"the last state of {self.run} does not fit what this recipe trains: {error.message}",
                    hint="the same objective and optimizer as that run's, or start.optimizer=fresh",
                ) from error


def open_start(recipe: Recipe, tokenizer: Tokenizer) -> Start | None:
    """Open what `start` names, or return None for random weights.

    Args:
        recipe: the recipe.
        tokenizer: the run's.

    Raises:
        DataError, IntegrityError: there is no model, or it is damaged.
        IncompatibleError: another tokenizer, another content than `start.digest`, a model section that contradicts it, or a
            change that its architecture does not allow.
    """
    config = recipe.start
    if config.path is None:
        return None
    folder = model_folder(Path(config.path))
    verify_if_artifact(folder)
    run = _run_of(folder)
    checkpoint = _checkpoint(config, recipe, run) if config.optimizer == "continue" else None
    digest = _content_digest(folder, checkpoint)
    if config.digest is not None and config.digest != digest:
        raise IncompatibleError(
            f"{folder} has the content {digest[:12]}, start.digest is {config.digest[:12]}.",
            hint="the model was trained on or replaced; leave out start.digest to start from what is there",
        )
    own = Tokenizer.load(folder)
    if own.digest != tokenizer.digest and not is_extension(tokenizer, own):
        raise IncompatibleError(
            f"{folder} was trained with tokenizer {own.digest[:12]}, the run has {tokenizer.digest[:12]}.",
            hint="leave out the tokenizer section, so that the start's is used",
        )
    model, left_out = read_model(folder)
    section = _check_section(recipe, model.config)
    report: dict[str, Any] = {
        "folder": str(folder),
        "digest": digest,
        "family": model.config.family,
        "optimizer": config.optimizer,
        "taken": ["trunk"],
        "new": [],
        "changed": [],
        "left_out": dict(left_out),
    }
    extras = dict(model.extras.items())
    head = model.head
    if head is None:
        head = _new_head(model, recipe.training.seed)
        report["new"].append("head")
    else:
        report["taken"].append("head")
    changed = LanguageModel(model.trunk, head)
    if own.digest != tokenizer.digest:
        before = sum(p.numel() for p in changed.parameters())
        changed = extend_vocabulary(changed, pieces_of_new(tokenizer, own))
        grown = sum(p.numel() for p in changed.parameters()) - before
        report["changed"].append(
            f"vocabulary {own.vocab_size} -> {tokenizer.vocab_size} (words in tokenizer/report.json), {grown:,} weights more"
        )
    changed = _changed(changed, config, recipe.training.seed, report["changed"])
    dropout = {key: section[key] for key in _MAY_CHANGE if key in section}
    if dropout:
        changed = _described(changed, changed.config.updated(**dropout))
    return Start(folder, run, digest, changed, extras, section, checkpoint, report)


def start_tokenizer(recipe: Recipe) -> str | None:
    """Return the path of the tokenizer that comes with the start, or None.

    Raises:
        ConfigError: the tokenizer section asks for another vocabulary.
        IncompatibleError: it names a tokenizer that gives other ids.
    """
    if recipe.start.path is None:
        return None
    folder = model_folder(Path(recipe.start.path))
    section = recipe.tokenizer
    if section.path is not None:
        own, given = Tokenizer.load(folder), Tokenizer.load(section.path, lowercase=section.lowercase)
        if own.digest != given.digest:
            raise IncompatibleError(
                f"{folder} was trained with tokenizer {own.digest[:12]}, tokenizer.path={section.path} is {given.digest[:12]}.",
                hint="leave out tokenizer.path: weights are of use with their own vocabulary only",
            )
    default = type(section)()
    given_keys = [
        f"tokenizer.{name}={getattr(section, name)!r}"
        for name in type(section).model_fields
        if name != "path" and getattr(section, name) != getattr(default, name)
    ]
    if given_keys:
        raise ConfigError(
            f"{', '.join(given_keys)} says how to learn a vocabulary, but start.path brings one.",
            hint="leave out the tokenizer section",
        )
    return str(folder)


def _run_of(folder: Path) -> Path | None:
    """Return the run a model folder belongs to."""
    run = folder.parent
    return run if folder.name == "model" and (run / "pretrain" / "resolved.json").is_file() else None


def _content_digest(folder: Path, checkpoint: Artifact | None) -> str:
    """Return a hash over the files that decide what is taken."""
    files = {
        path.name: file_digest(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in (".json", ".safetensors", ".txt") and path.name != MANIFEST
    }
    return digest_of({"files": files, "checkpoint": checkpoint.digest if checkpoint else None})


def _checkpoint(config: StartConfig, recipe: Recipe, run: Path | None) -> Artifact:
    """Return the newest checkpoint of the start's run."""
    newest = None if run is None else Checkpoints(run / "pretrain" / "checkpoints", inputs={}).newest()
    if run is None or newest is None:
        raise IncompatibleError(
            f"start.optimizer=continue needs the checkpoints of a run, and {config.path} has none.",
            hint="start.optimizer=fresh takes the weights alone",
        )
    before = read_sealed_json(run / "pretrain" / "resolved.json")["resolved"]
    if before["optim"]["name"] != recipe.optim.name:
        raise IncompatibleError(
            f"{run} was trained with {before['optim']['name']}, this recipe with {recipe.optim.name}: moments do not carry over.",
            hint=f"optim.name={before['optim']['name']}, or start.optimizer=fresh",
        )
    return newest


def _check_section(recipe: Recipe, start: TransformerConfig) -> dict[str, Any]:
    """Return what stands for the model section; refuse keys that contradict the start."""
    section: FamilyConfig = recipe.model
    given = {name: getattr(section, name) for name in section.model_fields_set}
    wrong = []
    if "name" in given and section.name != start.family:
        wrong.append(f"model.name is {section.name}, the start is a {start.family}")
    for name, value in given.items():
        if name in ("name", *_MAY_CHANGE) or value is None:
            continue
        if name == "preset":
            shape = PRESETS[section.preset]
            found = (start.num_layers, start.hidden_size)
            is_whole = section.num_layers is None and section.hidden_size is None
            if is_whole and found != (shape.num_layers, shape.hidden_size):
                wrong.append(
                    f"model.preset={value} has {shape.num_layers} layers of {shape.hidden_size},"
                    f" the start {found[0]} of {found[1]}"
                )
        elif hasattr(start, name):
            if getattr(start, name) != value:
                wrong.append(f"model.{name} is {value}, the start's {getattr(start, name)}")
        elif value != type(section).model_fields[name].default:
            wrong.append(f"model.{name} cannot be compared with a finished model")
    if wrong:
        raise IncompatibleError(
            f"the model section contradicts the start: {'; '.join(wrong)}.",
            hint="leave out the model section; start.max_length and start.grow change a start",
        )
    return {"name": start.family, **{key: given[key] for key in _MAY_CHANGE if given.get(key) is not None}}


@torch.no_grad()
def _new_head(model: LanguageModel, seed: int) -> LMHead:
    """Return a head for a model without one, as a new model's of this seed; a tied one uses the embedding that is there."""
    head = make_head(model.trunk)
    fresh = build_model(model.config, seed=seed).head
    assert fresh is not None
    values = dict(fresh.named_parameters())
    for name, parameter in head.named_parameters():
        if parameter is not model.trunk.embedding.token.weight:
            parameter.copy_(values[name])
    return head


def _changed(model: LanguageModel, config: StartConfig, seed: int, said: list[str]) -> LanguageModel:
    """Return the model with longer rows, more layers or more width, as asked; what was done is added to `said`."""
    before = model.config
    if config.max_length is not None and config.max_length != before.max_length:
        model = extend_positions(model, config.max_length, method=config.position_method)
        said.append(f"positions {before.max_length} -> {config.max_length}")
    grow = config.grow
    if grow.num_layers is not None:
        model = stack_layers(model, grow.num_layers, how=grow.how)
        said.append(f"layers {before.num_layers} -> {grow.num_layers} ({grow.how})")
    if grow.width_factor > 1 or grow.ffn_size is not None:
        model = widen(model, factor=grow.width_factor, ffn_size=grow.ffn_size, noise=grow.noise, seed=seed)
        after = model.config
        said.append(
            f"width {before.hidden_size} -> {after.hidden_size}, feed-forward {before.ffn_size} -> {after.ffn_size}"
        )
    return model


def _described(model: LanguageModel, config: TransformerConfig) -> LanguageModel:
    """Return the model under another description of the same weights."""
    return LanguageModel.of(config, dict(model.named_parameters()), has_head=True, source="the start")


# ------------------------------------------------------------------------------------------------------- the old text


@dataclass(frozen=True, slots=True)
class OldText:
    """Hold the token store of the text that came before, and its tokenizer, which may lack words the run has added."""

    run: Path
    tokens: Artifact
    store: TokenStore
    tokenizer: Tokenizer

    def has_validation_of(self, tokens: Artifact) -> bool:
        """Say whether another store has the very same validation split, as that of an appended corpus does."""

        def files(artifact: Artifact) -> dict[str, Any]:
            return {n: f for n, f in artifact.manifest["files"].items() if n.startswith("validation-")}

        return files(self.tokens) == files(tokens)


def open_old_text(config: StartConfig, start: Start | None, tokenizer: Tokenizer) -> OldText | None:
    """Open the old text of a continued run: `start.replay.run`, or the run the start belongs to; None if there is none.

    Raises:
        ConfigError: replay or a limit on forgetting is asked for, and no run with a token store is named.
        IncompatibleError: the store was made with another tokenizer.
    """
    if start is None:
        return None
    named = config.replay.run
    run = Path(named).expanduser() if named is not None else start.run
    if run is None or not (run / "tokens").exists():
        if named is not None or config.replay.share or config.max_forgetting is not None:
            where = "no run with a token store is known" if run is None else f"{run} has no token store"
            raise ConfigError(
                f"start.replay and start.max_forgetting need old text, and {where}.",
                hint="start.replay.run names the run folder of the old text",
            )
        return None
    tokens = open_verified(run / "tokens", stage="tokens")
    store = TokenStore.open(tokens)
    own = tokenizer
    if store.tokenizer_digest != tokenizer.digest:
        own = Tokenizer.load(run / "tokenizer")
    if store.tokenizer_digest != own.digest or not is_extension(tokenizer, own):
        raise IncompatibleError(
            f"{run} holds tokens of tokenizer {store.tokenizer_digest[:12]}, the run has {tokenizer.digest[:12]}.",
            hint="replay text from a run with the start's tokenizer, or tokenise the old text anew with it",
        )
    return OldText(run, tokens, store, own)
