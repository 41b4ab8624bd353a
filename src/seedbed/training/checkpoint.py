"""Save and load training states as artifacts: safetensors and JSON, complete or absent, never half.

    pretrain/checkpoints/step-00000400/   full: model, optimizer, state; the two newest are kept
    pretrain/checkpoints/weights-00000200/   weights only, older
    pretrain/checkpoints/best-00000380/   weights only, lowest validation loss
    pretrain/checkpoints/anchor-00000380/   full, where validations are: what a run rolls back to; the two newest
    pretrain/checkpoints/mean-00000380/   weights only, of the last validations, when their mean is exported

Names carry the window (rows consumed), and the newest sound one is found by name and manifest, never by a file time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seedbed.artifact import Artifact, open_verified, publish, remove, sweep, write_json
from seedbed.errors import IncompatibleError, IntegrityError, NumericError
from seedbed.tensors import load_tensors, save_tensors
from seedbed.training.state import TrainingState, named_tensors

__all__ = ["CHECKPOINT_VERSION", "Checkpoints"]

CHECKPOINT_VERSION = 1
_logger = logging.getLogger(__name__)


class Checkpoints:
    """Manage the checkpoints of one run.

    Args:
        folder: where they lie.
        inputs: digests of what the run stands on (tokens, tokenizer); a checkpoint of other inputs is refused.
        keep_weights: older weights-only checkpoints to keep.
    """

    def __init__(self, folder: Path, *, inputs: Mapping[str, str], keep_weights: int = 3) -> None:
        self.folder = folder
        self.inputs = dict(inputs)
        self.keep_weights = keep_weights

    def save(self, state: TrainingState, *, extra: Mapping[str, Any] | None = None) -> Path:
        """Save a full checkpoint of the state, then let older ones go; saving the same window twice does nothing."""
        target = self._save_state("step", state, extra or {})
        self._rotate()
        return target

    def save_anchor(self, state: TrainingState) -> None:
        """Save a full checkpoint to roll back to; the two newest are kept."""
        self._save_state("anchor", state, {})
        for older in self._listed("anchor")[:-2]:
            remove(older)

    def load_anchor(self, state: TrainingState, *, before: int) -> int:
        """Load the newest anchor of a window before this one, all but its window, hooks and known norms; return its window.

        Raises:
            NumericError: there is none.
        """
        paths = [path for path in self._listed("anchor") if _window_of(path) < before]
        if not paths:
            raise NumericError(
                f"{self.folder} has no state from before window {before} to roll back to.",
                hint="lower optim.learning_rate",
            )
        window, hooks = state.window, state.hooks
        memory = None if state.spikes is None else state.spikes.memory
        state.optimizer.state.clear()
        if state.average is not None:
            state.average.tensors = {}
        self.load(state, open_verified(paths[-1], stage="checkpoint", version=CHECKPOINT_VERSION))
        state.window, state.num_skipped, state.hooks = window, window - state.step, hooks
        if state.spikes is not None and memory is not None:
            state.spikes.memory = memory
        return _window_of(paths[-1])

    def _save_state(self, kind: str, state: TrainingState, extra: Mapping[str, Any]) -> Path:
        """Save everything of a state as `<kind>-<window>`, unless it is there and sound."""
        target = self.folder / f"{kind}-{state.window:08d}"
        if not self._has(target):
            weights, moments = dict(named_tensors(state.learner.parts)), state.optimizer_tensors()
            averages = {} if state.average is None else state.average.tensors
            with self._publish(target, needed_bytes=_bytes(weights, moments, averages)) as draft:
                save_tensors(weights, draft.path / "model.safetensors")
                save_tensors(moments, draft.path / "optimizer.safetensors")
                if state.average is not None and state.average.tensors:
                    save_tensors(state.average.tensors, draft.path / "average.safetensors")
                write_json(
                    draft.path / "state.json",
                    {
                        "window": state.window,
                        "num_skipped": state.num_skipped,
                        "skips_in_a_row": state.skips_in_a_row,
                        "hooks": state.hooks,
                        **({} if state.spikes is None else {"gradient_norms": state.spikes.values()}),
                        **extra,
                    },
                )
                draft.counts = {"window": state.window}
        return target

    def save_best(self, state: TrainingState) -> None:
        """Save the weights as the best so far, in place of those before."""
        self._save_weights("best", state, keep=1)

    def save_for_mean(self, state: TrainingState, *, keep: int) -> None:
        """Save the weights as one of the last `keep`, whose mean is to be exported."""
        self._save_weights("mean", state, keep=keep)

    def load_mean(self, parts: nn.ModuleDict) -> list[int]:
        """Load the mean of the weights saved for it (summed in float64), and return their windows."""
        paths = self._listed("mean")
        sums: dict[str, Tensor] = {}
        artifact = None
        for path in paths:
            artifact = open_verified(path, stage="checkpoint", version=CHECKPOINT_VERSION)
            for name, tensor in load_tensors(artifact.file("model.safetensors")).items():
                value = tensor.double() if tensor.is_floating_point() else tensor
                is_sum = name in sums and tensor.is_floating_point()
                sums[name] = sums[name] + value if is_sum else value  # of counters the last
        if artifact is not None:
            means = {n: s / len(paths) if s.is_floating_point() else s for n, s in sums.items()}
            _put_parts(parts, means, artifact)
        return [_window_of(path) for path in paths]

    def load_best(self, parts: nn.ModuleDict, *, window: int) -> None:
        """Load the best weights, which validation recorded at `window`."""
        artifact = open_verified(
            self.folder / f"best-{window:08d}", stage="checkpoint", version=CHECKPOINT_VERSION
        )
        _load_parts(parts, artifact)

    def newest(self) -> Artifact | None:
        """Return the newest sound full checkpoint, or None when there is none at all.

        A damaged one is passed over with a warning, since the one before it is as good, only older.

        Raises:
            IntegrityError: there are checkpoints, and all are damaged.
        """
        damage: list[IntegrityError] = []
        for path in reversed(self._listed("step")):
            try:
                artifact = open_verified(path, stage="checkpoint", version=CHECKPOINT_VERSION)
                artifact.verify()
            except IntegrityError as error:
                _logger.warning("checkpoint passed over: %s", error.message)
                damage.append(error)
                continue
            return artifact
        if damage:
            raise IntegrityError(
                f"every checkpoint in {self.folder} is damaged; the newest: {damage[0].message}",
                hint="restore one from a copy, or start over with --replace",
            )
        return None

    def load(self, state: TrainingState, artifact: Artifact) -> dict[str, Any]:
        """Load a full checkpoint into the state and return its `state.json`.

        Raises:
            IncompatibleError: it stands on other inputs, or its tensors do not fit the model.
        """
        for name, digest in self.inputs.items():
            found = artifact.manifest["inputs"].get(name)
            if found != digest:
                raise IncompatibleError(
                    f"{artifact.path} was trained with another {name} ({str(found)[:12]}, here {digest[:12]}).",
                    hint=f"use the {name} it was trained with, or another run folder",
                )
        self.load_parts_and_moments(state, artifact)
        if state.average is not None and "average.safetensors" in artifact.files:
            parameters = state.parameters()
            state.average.tensors = {
                name: tensor.to(parameters[name].device)
                for name, tensor in load_tensors(artifact.file("average.safetensors")).items()
            }
        saved: dict[str, Any] = json.loads(artifact.file("state.json").read_text(encoding="utf-8"))
        state.window, state.num_skipped = int(saved["window"]), int(saved["num_skipped"])
        state.skips_in_a_row = int(saved.get("skips_in_a_row", 0))
        state.hooks = saved["hooks"]
        if state.spikes is not None:
            state.spikes.restore(saved["gradient_norms"])
        return saved

    def load_parts_and_moments(self, state: TrainingState, artifact: Artifact) -> None:
        """Load weights and optimizer of a full checkpoint, and nothing else: another run goes on from them.

        Raises:
            IncompatibleError: its tensors do not fit the model.
        """
        _load_parts(state.learner.parts, artifact)
        state.load_optimizer_tensors(load_tensors(artifact.file("optimizer.safetensors")))

    def drop_after(self, window: int) -> None:
        """Remove best weights, those saved for a mean, and anchors, of windows that a resumed run will pass again.

        What a killed run left half written or half removed goes too.
        """
        if self.folder.is_dir():
            sweep(self.folder)
        for path in [*self._listed("best"), *self._listed("mean"), *self._listed("anchor")]:
            if _window_of(path) > window:
                remove(path)

    def _save_weights(self, kind: str, state: TrainingState, *, keep: int) -> None:
        """Save the weights as `<kind>-<window>`, then remove all but the newest `keep` of the kind."""
        target = self.folder / f"{kind}-{state.window:08d}"
        if not self._has(target):
            weights = dict(named_tensors(state.learner.parts))
            with self._publish(target, needed_bytes=_bytes(weights)) as draft:
                save_tensors(weights, draft.path / "model.safetensors")
                draft.counts = {"window": state.window}
        for older in self._listed(kind)[:-keep]:
            remove(older)

    def _publish(self, target: Path, *, needed_bytes: int = 0) -> Any:
        return publish(
            target,
            stage="checkpoint",
            version=CHECKPOINT_VERSION,
            inputs=self.inputs,
            needed_bytes=needed_bytes,
        )

    def _has(self, target: Path) -> bool:
        """Say whether a checkpoint is there; a damaged one, passed over by the resume, is removed."""
        if not target.exists():
            return False
        try:
            open_verified(target, stage="checkpoint", version=CHECKPOINT_VERSION).verify()
        except IntegrityError:
            remove(target)
            return False
        return True

    def _listed(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-*")) if self.folder.is_dir() else []

    def _rotate(self) -> None:
        """Keep two full checkpoints; turn older ones into weights only, and of those keep a few."""
        for old in self._listed("step")[:-2]:
            target = self.folder / old.name.replace("step-", "weights-")
            if self.keep_weights and not target.exists():
                with self._publish(target) as draft:
                    os.link(old / "model.safetensors", draft.path / "model.safetensors")
            remove(old)
        weights = self._listed("weights")
        for old in weights[: max(0, len(weights) - self.keep_weights)]:
            remove(old)


def _bytes(*tensors: Mapping[str, Tensor]) -> int:
    """Return what these take on the disk, headers left out."""
    return sum(tensor.numel() * tensor.element_size() for part in tensors for tensor in part.values())


def _window_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _load_parts(parts: nn.ModuleDict, artifact: Artifact) -> None:
    """Copy saved tensors into the modules."""
    _put_parts(parts, load_tensors(artifact.file("model.safetensors")), artifact)


def _put_parts(parts: nn.ModuleDict, saved: Mapping[str, Tensor], artifact: Artifact) -> None:
    """Copy tensors into the modules; every name and shape must match."""
    own = dict(named_tensors(parts))
    problems = [f"missing {n}" for n in own.keys() - saved.keys()]
    problems += [f"unexpected {n}" for n in saved.keys() - own.keys()]
    problems += [
        f"{n} is {tuple(saved[n].shape)}, the model has {tuple(own[n].shape)}"
        for n in own.keys() & saved.keys()
        if own[n].shape != saved[n].shape
    ]
    if problems:
        raise IncompatibleError(
            f"{artifact.path} does not fit the model: {'; '.join(sorted(problems)[:8])}.",
            hint="resume with the model section it was trained with",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
