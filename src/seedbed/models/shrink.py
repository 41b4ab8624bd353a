"""Start a shallower model from the layers of a deeper one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seedbed.errors import IncompatibleError
from seedbed.models.transformer import Transformer

__all__ = ["spread_layers", "take_layers"]


def spread_layers(deep: int, shallow: int) -> list[int]:
    """Return which layers of `deep` to take for `shallow`: the first of each of as many even stretches.

    Half the layers gives 0, 2, 4, ...: one of two, as DistilBERT (1910.01108, section 3).
    """
    return [layer * deep // shallow for layer in range(shallow)]


@torch.no_grad()
def take_layers(student: Transformer, teacher: Transformer, layers: Sequence[int]) -> None:
    """Copy into a student the embeddings, the norms and these layers of a teacher, in place.

    Args:
        student: has as many layers as `layers` names, each of the teacher's shapes.
        teacher: only read.
        layers: numbers of the teacher's layers, from 0.

    A student without token types takes a teacher's type 0 into its position table (its token table, where it has none), so
    that hidden states stay the same.

    Raises:
        IncompatibleError: depths, names or shapes differ, each named; nothing was copied.
    """
    count = student.config.num_layers
    if len(layers) != count or student.config.num_stored_layers != count:
        raise IncompatibleError(
            f"{len(layers)} layers were named for a student of {student.config.num_stored_layers} stored layers.",
            hint="name one layer of the teacher for each of the student's; layers must not be shared",
        )
    sources = dict(_named(teacher))
    types = sources.pop("embedding.token_type.weight", None)
    if types is not None and student.embedding.token_type is not None:
        sources["embedding.token_type.weight"] = types
    wanted: dict[str, Tensor] = {}
    problems = []
    for name, parameter in student.named_parameters():
        source = name
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            source = f"layers.{teacher.config.stored_layer(layers[int(number)])}.{rest}"
        found = sources.get(source)
        if found is None or found.shape != parameter.shape:
            problems.append(f"{name} {tuple(parameter.shape)}")
        else:
            wanted[name] = found
    if problems:
        raise IncompatibleError(
            f"a student cannot start from a teacher of other shapes; they differ at {', '.join(problems[:6])}"
            + (f" and {len(problems) - 6} more." if len(problems) > 6 else "."),
            hint="give the student the teacher's family, width, heads and ffn_size, or start it at random",
        )
    for name, parameter in student.named_parameters():
        parameter.copy_(wanted[name])
    if types is not None and student.embedding.token_type is None:
        table = student.embedding.token if student.embedding.position is None else student.embedding.position
        table.weight.add_(types[0])


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter.detach()) for name, parameter in module.named_parameters()]
