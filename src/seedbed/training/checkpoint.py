"""Save and load training states as artifacts: safetensors and JSON, complete or absent, never half.

    pretrain/checkpoints/step-00000400/   full: model, optimizer, state; the two newest are kept
    pretrain/checkpoints/weights-00000200/   weights only, older
    pretrain/checkpoints/best-00000380/   weights only, lowest validation loss
    pretrain/checkpoints/anchor-00000380/   full, where validations are: what a run rolls back to; the two newest
    pretrain/checkpoints/mean-00000380/   weights only, of the last validations, when their mean is exported

Where workers share the weights, all of them save: each tensor in turn is gathered, and the first worker writes it. The files are
those of a run with whole weights, and either kind of run goes on from either. What gradients that travelled as products of thin
matrices left over is saved for each worker (`powersgd-0-of-2.safetensors`), and of no use to another number of workers.

Names carry the window (rows consumed), and the newest sound one is found by name and manifest, never by a file time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from seedbed.artifact import Artifact, open_verified, publish, remove, sweep, write_json
from seedbed.errors import IncompatibleError, IntegrityError, NumericError
from seedbed.tensors import load_tensors, open_tensors
from seedbed.training.parallel import any_worker, num_workers, worker
from seedbed.training.state import TrainingState
from seedbed.training.tensor_files import Writer, file_of_worker, load_parts, read_own

if TYPE_CHECKING:
    from seedbed.training.shards import Shards

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
        if worker() == 0:
            self._rotate()
        return target

    def save_anchor(self, state: TrainingState) -> None:
        """Save a full checkpoint to roll back to; the two newest are kept."""
        self._save_state("anchor", state, {})
        self._keep("anchor", 2)

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
        self.load(state, self._open(paths[-1]))
        state.window, state.num_skipped, state.hooks = window, window - state.step, hooks
        if state.spikes is not None and memory is not None:
            state.spikes.memory = memory
        return _window_of(paths[-1])

    def _save_state(self, kind: str, state: TrainingState, extra: Mapping[str, Any]) -> Path:
        """Save everything of a state as `<kind>-<window>`, unless it is there and sound."""
        target = self.folder / f"{kind}-{state.window:08d}"
        with self._saving(target, state) as save:
            if save is None:
                return target
            save("model.safetensors", state.model_tensors(), state.layout)
            save("optimizer.safetensors", state.optimizer_tensors(), state.optimizer_layout())
            if state.average is not None and state.average.tensors:
                save("average.safetensors", state.average.tensors, state.layout)
            if state.memory is not None:
                save.of_each_worker("powersgd", state.memory.saved())
            if save.draft is not None:
                write_json(
                    save.draft.path / "state.json",
                    {
                        "window": state.window,
                        "num_skipped": state.num_skipped,
                        "skips_in_a_row": state.skips_in_a_row,
                        "hooks": state.hooks,
                        **({} if state.spikes is None else {"gradient_norms": state.spikes.values()}),
                        **({} if state.loss_scale is None else {"loss_scale": state.loss_scale.values()}),
                        **extra,
                    },
                )
        return target

    def save_best(self, state: TrainingState) -> None:
        """Save the weights as the best so far, in place of those before."""
        self._save_weights("best", state, keep=1)

    def save_for_mean(self, state: TrainingState, *, keep: int) -> None:
        """Save the weights as one of the last `keep`, whose mean is to be exported."""
        self._save_weights("mean", state, keep=keep)

    def load_mean(self, parts: nn.ModuleDict, *, shards: Shards | None = None) -> list[int]:
        """Load the mean of the weights saved for it (summed in float64), and return their windows."""
        paths = self._listed("mean")
        if paths:
            load_parts(parts, [self._open(path) for path in paths], shards)
        return [_window_of(path) for path in paths]

    def load_best(self, parts: nn.ModuleDict, *, window: int, shards: Shards | None = None) -> None:
        """Load the best weights, which validation recorded at `window`."""
        load_parts(parts, [self._open(self.folder / f"best-{window:08d}")], shards)

    def newest(self) -> Artifact | None:
        """Return the newest sound full checkpoint, or None when there is none at all.

        A damaged one is passed over with a warning, since the one before it is as good, only older.

        Raises:
            IntegrityError: there are checkpoints, and all are damaged.
        """
        damage: list[IntegrityError] = []
        for path in reversed(self._listed("step")):
            try:
                artifact = self._open(path)
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
            parameters, layout = state.parameters(), state.layout
            with open_tensors(artifact.file("average.safetensors")) as file:
                state.average.tensors = {
                    name: read_own(file, name, layout).to(parameters[name].device) for name in file.names
                }
        if state.memory is not None:
            _load_memory(state, artifact)
        saved: dict[str, Any] = json.loads(artifact.file("state.json").read_text(encoding="utf-8"))
        state.window, state.num_skipped = int(saved["window"]), int(saved["num_skipped"])
        state.skips_in_a_row = int(saved.get("skips_in_a_row", 0))
        state.hooks = saved["hooks"]
        if state.spikes is not None:
            state.spikes.restore(saved["gradient_norms"])
        if state.loss_scale is not None and "loss_scale" in saved:
            state.loss_scale.load(saved["loss_scale"])
        return saved

    def load_parts_and_moments(self, state: TrainingState, artifact: Artifact) -> None:
        """Load weights and optimizer of a full checkpoint, and nothing else: another run goes on from them.

        Raises:
            IncompatibleError: its tensors do not fit the model.
        """
        load_parts(state.learner.parts, [artifact], state.shards)
        with open_tensors(artifact.file("optimizer.safetensors")) as file:
            for name in file.names:  # one at a time, since of shared ones only some rows are kept
                state.load_optimizer_tensors({name: file.read(name)})

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
        with self._saving(self.folder / f"{kind}-{state.window:08d}", state) as save:
            if save is not None:
                save("model.safetensors", state.model_tensors(), state.layout)
        self._keep(kind, keep)

    @contextmanager
    def _saving(self, target: Path, state: TrainingState) -> Iterator[Writer | None]:
        """Yield what saves tensors into `target`; None where there is nothing to do: it is there, or the first worker does it."""
        if worker() > 0 and not state.is_of_all_workers:
            yield None
            return
        is_there = worker() == 0 and self._has(target)
        if any_worker(is_there) if state.is_of_all_workers else is_there:
            yield None
            return
        if worker() > 0:
            yield Writer(None)
            return
        with self._publish(target, needed_bytes=_bytes_of(state, target)) as draft:
            yield Writer(draft)
            draft.counts = {"window": state.window}

    def _keep(self, kind: str, number: int) -> None:
        """Remove all but the newest of a kind."""
        for older in self._listed(kind)[:-number] if worker() == 0 else []:
            remove(older)

    def _open(self, path: Path) -> Artifact:
        return open_verified(path, stage="checkpoint", version=CHECKPOINT_VERSION)

    def _has(self, target: Path) -> bool:
        """Say whether a checkpoint is there; a damaged one, passed over by the resume, is removed."""
        if not target.exists():
            return False
        try:
            self._open(target).verify()
        except IntegrityError:
            remove(target)
            return False
        return True

    def _publish(self, target: Path, *, needed_bytes: int = 0) -> Any:
        return publish(
            target,
            stage="checkpoint",
            version=CHECKPOINT_VERSION,
            inputs=self.inputs,
            needed_bytes=needed_bytes,
        )

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


def _bytes_of(state: TrainingState, target: Path) -> int:
    """Return about what a checkpoint of the state takes on the disk; where workers share weights, that of all together."""
    tensors = dict(state.model_tensors())
    if target.name.startswith(("step-", "anchor-")):
        tensors |= state.optimizer_tensors()
    return _sharers(state) * sum(t.numel() * t.element_size() for t in tensors.values())


def _sharers(state: TrainingState) -> int:
    """Return how many workers hold different parts of the weights."""
    return 1 if state.shards is None else num_workers()


def _window_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _load_memory(state: TrainingState, artifact: Artifact) -> None:
    """Give this worker back what it remembered; with another number of workers it begins anew."""
    assert state.memory is not None
    name = file_of_worker("powersgd", worker())
    saved = load_tensors(artifact.file(name)) if name in artifact.files else {}
    state.memory.load(saved, device=next(state.learner.parameters()).device)
    if not saved and worker() == 0:
        _logger.warning(
            "%s holds no memory of PowerSGD for %d workers: what they had not sent is lost, and it begins anew",
            artifact.path,
            num_workers(),
        )
