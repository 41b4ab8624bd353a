"""Muon: momentum of hidden matrices, orthogonalised; AdamW for everything else, in one optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.optim.base import OptimizerConfig
from seedbed.optim.groups import is_hidden_matrix
from seedbed.optim.guard import GuardedOptimizer, adam_directions, adam_state, decay_weights
from seedbed.optim.schedule import History
from seedbed.optim.shards import shards_of
from seedbed.runtime import cpu_multiplies_bfloat16

__all__ = ["Muon", "MuonConfig", "orthogonalize", "projections"]

_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),)
"""Jordan and others 2024: the steepest slope at zero; singular values end between about 0.7 and 1.2, not at 1."""

_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Amsel and others, arXiv 2505.16932, with the cushion and the 2 % of safety (below) of modded-nanogpt: 0.86 to 1.14."""

Orthogonalization = Literal["newton_schulz", "polar_express"]


class MuonConfig(OptimizerConfig):
    """Muon (Jordan and others 2024, kellerjordan.github.io/posts/muon; at scale: arXiv 2502.16982).

    torch.optim.Muon overlooks the flag of a non-finite gradient and takes no other parameters beside its matrices, hence
    ours; on one matrix the update is the same. Hidden matrices are those inside layers; embeddings, heads, vectors and
    tables of positions go to AdamW.

    Projections that are stored as one matrix (queries, keys and values; the two halves of a gated block) are separate maps,
    and orthogonalised each by itself: together, their directions would be made orthogonal to each other.

    Products run in bfloat16 where the device has such products, and in float32 on other CPUs, which changes rounding only.
    """

    name: Literal["muon"] = Field(
        "muon", description="Orthogonalised momentum for hidden matrices, else AdamW."
    )
    learning_rate: float = Field(
        6e-3,
        gt=0.0,
        description="Peak rate of hidden matrices, at about 16k tokens a step (0.003 to 0.02 by source).",
    )
    adam_learning_rate: float = Field(
        3e-3, gt=0.0, description="Peak rate of everything else, same schedule."
    )
    momentum: float = Field(0.95, ge=0.0, lt=1.0, description="Decay of the gradient's running mean.")
    initial_momentum: float = Field(0.85, ge=0.0, lt=1.0, description="Where momentum starts.")
    momentum_warmup_steps: int = Field(
        300, ge=0, description="Steps over which momentum rises linearly; a fifth of the run at most."
    )
    is_nesterov: bool = Field(True, description="Look ahead by one momentum step.")
    orthogonalization: Orthogonalization = Field(
        "newton_schulz", description="newton_schulz: one polynomial throughout; polar_express: one a step."
    )
    num_iterations: int = Field(5, ge=1, le=20, description="Steps of it (polar_express: 5 at most).")
    update_scale: Literal["shape", "rms"] = Field(
        "shape",
        description="shape: times sqrt(max(1, rows / columns)); rms: times 0.2 sqrt(max(rows, columns)), updates of AdamW's"
        " size, so that a rate and decay found for AdamW serve.",
    )
    is_cautious: bool = Field(
        True, description="Decay a weight only where its update shrinks it, too (arXiv 2510.12402)."
    )
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW's, for everything else.")
    beta2: float = Field(0.95, ge=0.0, lt=1.0, description="AdamW's, for everything else.")
    eps: float = Field(1e-10, gt=0.0, description="AdamW's, for everything else.")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        return Muon(self._groups(named_parameters))

    def settings(self, step: int, num_steps: int, history: History = ()) -> dict[str, float]:
        """Return also the momentum of a step."""
        warmup = min(self.momentum_warmup_steps, num_steps // 5)
        share = 1.0 if step >= warmup else step / warmup
        momentum = self.initial_momentum + share * (self.momentum - self.initial_momentum)
        return {**super().settings(step, num_steps, history), "momentum": momentum}

    def _groups(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Return the groups, with this config's values and the rows of stacked projections in each."""
        named = dict(named_parameters)
        rows = projections({name: tuple(parameter.shape) for name, parameter in named.items()})
        groups = self.groups(
            named.items(),
            kind=lambda name, p: "muon" if is_hidden_matrix(name, p) else "adamw",
            kind_scales={"adamw": self.adam_learning_rate / self.learning_rate},
        )
        keys = (
            "momentum",
            "is_nesterov",
            "orthogonalization",
            "num_iterations",
            "update_scale",
            "is_cautious",
        )
        values = {key: getattr(self, key) for key in (*keys, "beta1", "beta2", "eps")}
        return [
            {
                **group,
                **values,
                "rows": {named[name]: rows[name] for name in group["names"] if name in rows},
            }
            for group in groups
        ]


class Muon(GuardedOptimizer):
    """Orthogonalise the momentum of groups of kind "muon"; do AdamW for the others.

    Groups hold the config's values, and in `rows` the rows of each projection of a stacked matrix. All of it lies in the
    groups, since a copy of a torch optimizer has nothing else.
    """

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return zero moments."""
        return {"momentum": torch.zeros_like(parameter)} if group["kind"] == "muon" else adam_state(parameter)

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Do the update."""
        if group["kind"] == "muon":
            directions = self._matrix_directions(parameters, gradients, states, group)
        else:
            directions = adam_directions(
                gradients, states, beta1=group["beta1"], beta2=group["beta2"], eps=group["eps"]
            )
        amount = group["lr"] * group["weight_decay"]
        decay_weights(parameters, directions, amount=amount, is_cautious=group["is_cautious"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def _matrix_directions(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> list[Tensor]:
        """Advance the momenta and return them orthogonalised, each projection by itself; equal shapes go together."""
        momenta = [state["momentum"] for state in states]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        wanted: Sequence[Tensor] = momenta
        if group["is_nesterov"]:
            wanted = torch._foreach_lerp(gradients, momenta, group["momentum"])
        # Of NorMuon; here None.
        memories = [state.get("row_square") for state in states]
        if shards := [shards_of(group)[p] for p in parameters if shards_of(group)]:
            # Singular vectors are of the whole matrix. Every worker finds them, as it would with whole weights.
            wanted = [shard.whole(matrix) for shard, matrix in zip(shards, wanted, strict=True)]
            memories = [None if m is None else s.whole(m) for s, m in zip(shards, memories, strict=True)]
        directions = [torch.empty_like(matrix) for matrix in wanted]
        places: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for parameter, matrix, direction, memory in zip(
            parameters, wanted, directions, memories, strict=True
        ):
            sizes = list(group["rows"].get(parameter, (matrix.shape[0],)))
            memory = direction[:, :1] if memory is None else memory  # any column, unused
            for piece, out, rows in zip(
                *(torch.split(each, sizes) for each in (matrix, direction, memory)), strict=True
            ):
                places[piece.shape].append((piece, out, rows))
        for pieces in places.values():
            stacked = orthogonalize(
                torch.stack([piece for piece, _, _ in pieces]),
                group["orthogonalization"],
                group["num_iterations"],
            )
            stacked = self.finish(stacked, [rows for _, _, rows in pieces], group)
            stacked *= _shape_factor(stacked.shape[-2], stacked.shape[-1], group["update_scale"])
            for (_, out, _), piece in zip(pieces, stacked, strict=True):
                out.copy_(piece)
        for shard, state, memory in zip(shards, states, memories, strict=False):
            if memory is not None:
                state["row_square"].copy_(shard.own(memory))
        return [s.own(d) for s, d in zip(shards, directions, strict=True)] if shards else directions

    def finish(self, stacked: Tensor, rows: list[Tensor], group: dict[str, Any]) -> Tensor:
        """Return what is done with orthogonal matrices (n, R, C) before they are scaled: nothing (NorMuon: something)."""
        return stacked


def orthogonalize(
    matrices: Tensor, method: Orthogonalization, num_iterations: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Bring the singular values of matrices near 1, keeping their singular vectors.

    Args:
        matrices: (..., R, C).
        method: which polynomials.
        num_iterations: applied one after the other.
        dtype: of the products; None: bfloat16, on a CPU that does not multiply it float32.

    Returns:
        The same shape and dtype as `matrices`.
    """
    has_bfloat16 = matrices.device.type != "cpu" or cpu_multiplies_bfloat16()
    x = matrices.to(dtype or (torch.bfloat16 if has_bfloat16 else torch.float32))
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:  # the smaller side makes the smaller square
        x = x.mT
    safety = 1.02 if method == "polar_express" else 1.0
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * safety).clamp(min=1e-7)
    polynomials = _POLAR_EXPRESS if method == "polar_express" else _NEWTON_SCHULZ * num_iterations
    for a, b, c in polynomials[:num_iterations]:
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    back: Tensor = x.mT if is_tall else x
    return back.to(matrices.dtype)


def projections(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the rows of each projection in matrices that hold several, by name.

    `qkv.weight` holds queries, as many rows as its neighbour `output.weight` has columns, then keys and values, which share
    the rest; `input.weight` of a gated block holds two halves, each as wide as its neighbour `output.weight` reads.
    """
    rows: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        stem, _, last = name.removesuffix(".weight").rpartition(".")
        output = shapes.get(f"{stem}.output.weight")
        if not name.endswith(".weight") or output is None or len(shape) != 2 or len(output) != 2:
            continue
        rest = shape[0] - output[1]
        if last == "qkv" and rest > 0 and rest % 2 == 0:
            rows[name] = (output[1], rest // 2, rest // 2)
        elif last == "input" and rest == output[1]:
            rows[name] = (rest, rest)
    return rows


def _shape_factor(rows: int, columns: int, kind: Literal["shape", "rms"]) -> float:
    if kind == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
