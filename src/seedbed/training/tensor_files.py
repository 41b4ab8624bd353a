"""Write tensors of a checkpoint and put them back, whole on one worker or shared among several: the files are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from seedbed.artifact import Artifact, Draft
from seedbed.errors import IncompatibleError
from seedbed.optim.shards import Shard, Slices
from seedbed.tensors import TensorFile, open_tensors, save_tensors, stream_order, stream_tensors
from seedbed.training.parallel import from_worker, num_workers
from seedbed.training.state import named_tensors

if TYPE_CHECKING:
    from seedbed.training.shards import Shards

__all__ = ["Writer", "file_of_worker", "load_parts", "read_own"]


@dataclass(frozen=True, slots=True)
class Writer:
    """Write files of tensors into a draft; without one, only take part in gathering what workers share."""

    draft: Draft | None

    def __call__(
        self, name: str, tensors: Mapping[str, Tensor], layout: Mapping[str, Shard | Slices]
    ) -> None:
        """Write a file; of tensors in the layout each in turn is gathered whole."""
        if not layout:
            if self.draft is not None:
                save_tensors(tensors, self.draft.path / name)
            return

        def whole(key: str) -> Tensor:
            return layout[key].whole(tensors[key].detach()) if key in layout else tensors[key]

        kinds = {
            key: (
                tensor.dtype,
                layout[key].whole_shape(tensor) if key in layout else tuple(tensor.shape),
            )
            for key, tensor in tensors.items()
        }
        if self.draft is not None:
            stream_tensors(kinds, whole, self.draft.path / name)
            return
        for key in stream_order(kinds):
            whole(key)

    def of_each_worker(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write what every worker holds as `<name>-<worker>-of-<workers>`: the same names and shapes on all."""
        for number in range(num_workers()):
            own = {key: from_worker(tensor, number) for key, tensor in sorted(tensors.items())}
            if self.draft is not None:
                save_tensors(own, self.draft.path / file_of_worker(name, number))


def file_of_worker(name: str, number: int) -> str:
    """Return the name of a file of which each worker has one."""
    return f"{name}-{number}-of-{num_workers()}.safetensors"


def read_own(file: TensorFile, name: str, layout: Mapping[str, Shard | Slices]) -> Tensor:
    """Return a saved tensor, or the rows of it this worker holds."""
    return layout[name].read(partial(file.read, name)) if name in layout else file.read(name)


def load_parts(parts: nn.ModuleDict, artifacts: Sequence[Artifact], shards: Shards | None) -> None:
    """Copy saved tensors, or the means of several saved ones, into the modules; every name and shape must match."""
    own = dict(named_tensors(parts) if shards is None else shards.named_tensors())
    layout = {} if shards is None else shards.layout
    with ExitStack() as stack, torch.no_grad():
        files = [stack.enter_context(open_tensors(a.file("model.safetensors"))) for a in artifacts]
        for artifact, file in zip(artifacts, files, strict=True):
            _check_fit(
                {n: layout[n].shape if n in layout else tuple(t.shape) for n, t in own.items()},
                file,
                artifact,
            )
        for name, tensor in own.items():
            if len(files) == 1 or not tensor.is_floating_point():
                tensor.copy_(read_own(files[-1], name, layout))  # of counters the last
                continue
            total = read_own(files[0], name, layout).double()
            for file in files[1:]:
                total = total + read_own(file, name, layout).double()
            tensor.copy_(total / len(files))


def _check_fit(shapes: Mapping[str, tuple[int, ...]], file: TensorFile, artifact: Artifact) -> None:
    """Refuse tensors that are not the model's."""
    saved = {name: file.shape(name) for name in file.names}
    problems = [f"missing {n}" for n in shapes.keys() - saved.keys()]
    problems += [f"unexpected {n}" for n in saved.keys() - shapes.keys()]
    problems += [
        f"{n} is {saved[n]}, the model has {shapes[n]}"
        for n in shapes.keys() & saved.keys()
        if saved[n] != shapes[n]
    ]
    if problems:
        raise IncompatibleError(
            f"{artifact.path} does not fit the model: {'; '.join(sorted(problems)[:8])}.",
            hint="resume with the model section it was trained with",
        )
