"""Run one optimizer step: count targets, divide once, sum gradients, check, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.errors import IncompatibleError
from seedbed.hashing import fold
from seedbed.objectives.base import Objective
from seedbed.optim.groups import set_groups
from seedbed.runtime import autocast
from seedbed.training.exact import ExactSum
from seedbed.training.loss_scale import LossScale
from seedbed.training.parallel import no_sync, sum_over_workers
from seedbed.training.spikes import SpikeGuard

if TYPE_CHECKING:
    from seedbed.training.shards import Shards

__all__ = ["Learner", "MicroBatch", "Perturbation", "StepResult", "train_step"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass: a batch, its targets, which objective they are of, and its share of the step.

    A filler counts for nothing: a worker without rows of an entry runs one, so that micro-batch k is of one entry everywhere.
    """

    batch: Batch
    targets: Mapping[str, Targets]
    entry: int = 0
    share: float = 1.0
    is_filler: bool = False
    counts: Mapping[str, float] | None = None
    """The targets of each term, where they were counted on the host: a GPU's weights would have to be waited for."""

    def to(self, device: torch.device | str) -> Self:
        """Return it with its tensors on `device`."""
        targets = {term: target.to(device) for term, target in self.targets.items()}
        return replace(self, batch=self.batch.to(device), targets=targets)

    def pinned(self) -> Self:
        """Return it in page-locked memory."""
        targets = {term: target.pinned() for term, target in self.targets.items()}
        return replace(self, batch=self.batch.pinned(), targets=targets)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did; tensors stay on the device, so that reading them late costs no wait.

    Attributes:
        losses: mean loss of each (entry, term) over all micro-batches of this worker's share, 0-d float32; summed
            over workers it is the mean over all targets.
        gradient_norm: global L2 norm before clipping, 0-d float32.
        is_applied: 0-d bool; False means that nothing was changed: the gradient was not finite, or a spike.
        counts: targets of each (entry, term), over all workers.
        scales: weight times share of rows of each (entry, term): their sum over losses is what was minimised.
        loss_scale: what a float16 loss was multiplied by, 0-d float32, or None.
    """

    losses: Mapping[tuple[int, str], Tensor]
    gradient_norm: Tensor
    is_applied: Tensor
    counts: Mapping[tuple[int, str], float]
    scales: Mapping[tuple[int, str], float]
    loss_scale: Tensor | None = None


class Perturbation(Protocol):
    """Disturb embeddings in several passes over a micro-batch (FGM, PGD, FreeLB).

    A pass of weight 0 only finds the gradient of its delta; the others also train.
    """

    @property
    def num_passes(self) -> int:
        """Passes over a micro-batch."""

    def delta(
        self,
        index: int,
        batch: Batch,
        previous: Tensor,
        gradient: Tensor | None,
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        """Return the (B, T, E) disturbance of pass `index`, from the previous one and its gradient (zeros, None at first).

        `key` is the dropout key of the step, the same in all passes: what is drawn is drawn from it.
        """

    def weight(self, index: int) -> float:
        """Return the weight of pass `index` in the gradient."""


class Learner(nn.Module):
    """Hold everything that trains, and compute the weighted loss: the one module that is wrapped for several workers."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        modules: Mapping[str, nn.Module] | Sequence[Mapping[str, nn.Module]],
    ) -> None:
        """Hold the modules of each objective; those several objectives name alike and are the same exist once.

        Args:
            objectives: by entry.
            modules: what trains, by the names the objectives gave; one mapping for each, or one for all.
        """
        super().__init__()
        self.objectives = list(objectives)
        each = [modules] * len(self.objectives) if isinstance(modules, Mapping) else list(modules)
        assert len(each) == len(self.objectives)
        self.parts = nn.ModuleDict()
        self._names: list[dict[str, str]] = []
        for entry, own in enumerate(each):
            names = {}
            for name, module in own.items():
                is_new = name not in self.parts
                key = name if is_new or self.parts[name] is module else f"{entry}-{name}"
                self.parts[key] = module
                names[name] = key
            self._names.append(names)
        # A plain list, not a registered module: what is frozen is neither trained nor saved.
        self._frozen = [objective.frozen() for objective in self.objectives]
        for frozen in self._frozen:
            for module in frozen.values():
                module.requires_grad_(False).eval()

    def modules_by_name(self, entry: int = 0) -> dict[str, nn.Module]:
        """Return what an objective trains and what it only asks, by the names it gave."""
        own = {name: self.parts[key] for name, key in self._names[entry].items()}
        return own | self._frozen[entry]

    def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call what runs this learner's modules: where workers share weights, this is how they are gathered for it."""
        return function(*arguments, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move frozen modules along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for frozen in self._frozen:
            for module in frozen.values():
                module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self,
        micro: MicroBatch,
        scales: Mapping[str, float],
        dropout_key: Tensor | None,
        embedding_delta: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scaled loss and the unscaled sum of each term that has a scale."""
        # A term without targets anywhere is left out; one that has a count but no targets of its own is derived.
        objective = self.objectives[micro.entry]
        targets = {
            t: target for t, target in micro.targets.items() if t in scales or t not in objective.terms
        }
        terms = objective.losses(
            self.modules_by_name(micro.entry),
            micro.batch,
            targets,
            dropout_key=dropout_key,
            embedding_delta=embedding_delta,
        )
        terms = {name: term for name, term in terms.items() if name in scales}
        total = torch.stack([scales[name] * term.loss for name, term in terms.items()]).sum()
        return total, {name: term.loss.detach() for name, term in terms.items()}


def train_step(
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    objectives: Sequence[Objective],
    progress: float,
    learning_rate: float,
    max_grad_norm: float,
    settings: Mapping[str, float] | None = None,
    dropout_key: Tensor | None = None,
    compute_dtype: torch.dtype = torch.float32,
    perturbation: Perturbation | None = None,
    embedding_width: int = 0,
    is_exact: bool = False,
    spikes: SpikeGuard | None = None,
    loss_scale: LossScale | None = None,
    shards: Shards | None = None,
) -> StepResult:
    """Train on the micro-batches of one step.

    The loss is the sum over terms of weight * share * (summed loss / count), with counts over all micro-batches and
    workers; how the step is cut into micro-batches or spread over workers changes only rounding. A step with a
    non-finite gradient leaves weights and optimizer bit-identical.

    Args:
        learner: a `Learner`, or one wrapped by `parallel.wrap`.
        optimizer: one that skips its update on the device when told of a non-finite gradient: fused torch ones and ours.
        micro_batches: this worker's, the same number on all workers.
        objectives: the learner's objectives, by entry.
        progress: in [0, 1], for scheduled weights.
        learning_rate: of this step, before each group's own scale.
        max_grad_norm: 0 switches clipping off.
        settings: what else is scheduled (`OptimizerConfig.settings`).
        dropout_key: 0-d int32, or None for no dropout.
        compute_dtype: bfloat16 or float16 runs matrix products in it; weights and losses stay float32.
        perturbation: passes over disturbed embeddings, or None. The losses returned are those of the first pass.
        embedding_width: E of the token embeddings (D unless they are factorised), needed with a perturbation only.
        is_exact: add up gradients in a fixed tree (`exact.py`), so that the number of workers changes no bit; `learner` is then
            not wrapped.
        spikes: judges the norm of the gradient; a spike is passed over like a gradient that is not finite. None: no guard.
        loss_scale: of float16, updated by the step.
        shards: this worker's share of the weights, where workers share them; `learner` is then the one it was made of.
    """
    # Count first, over everything: with masks, micro-batches have different numbers of targets.
    local: dict[tuple[int, str], float] = {(e, t): 0.0 for e, o in enumerate(objectives) for t in o.terms}
    for micro in micro_batches:
        own = objectives[micro.entry].counts(micro.targets) if micro.counts is None else micro.counts
        for term, count in own.items():
            local[micro.entry, term] += 0.0 if micro.is_filler else count
    copies = 1 if shards is None else shards.num_copies
    counts = {place: total / copies for place, total in sum_over_workers(local).items()}
    weights = [objective.weights(progress) for objective in objectives]

    # Accumulate gradients; only the last backward pass of the step talks to the other workers.
    optimizer.zero_grad(set_to_none=True)
    sums: dict[tuple[int, str], Tensor] = {}
    exact = (
        ExactSum(list(learner.parameters()), [k for k, n in counts.items() if n > 0]) if is_exact else None
    )
    device_type = next(learner.parameters()).device.type
    num_passes = perturbation.num_passes if perturbation else 1
    factor = None if loss_scale is None else loss_scale.scale
    for index, micro in enumerate(micro_batches):
        delta, gradient = None, None
        # Row numbers are unique within a view only: the entries of a mixture drop apart.
        key = dropout_key if dropout_key is None or not micro.entry else fold(dropout_key, micro.entry)
        for number in range(num_passes):
            pass_weight = 1.0
            if perturbation is not None:
                shape = (*micro.batch.input_ids.shape, embedding_width)
                previous = (
                    torch.zeros(shape, device=micro.batch.input_ids.device)
                    if delta is None
                    else delta.detach()
                )
                delta = perturbation.delta(number, micro.batch, previous, gradient, key=key).requires_grad_()
                pass_weight = perturbation.weight(number)
            scales = {
                term: (0.0 if micro.is_filler else pass_weight or 1.0)
                * weights[micro.entry][term]
                * micro.share
                / counts[micro.entry, term]
                for term in objectives[micro.entry].terms
                if counts[micro.entry, term] > 0
            }
            is_last = index == len(micro_batches) - 1 and number == num_passes - 1
            waiting = no_sync(learner) if shards is None else shards.no_sync()
            with waiting if not is_last else torch.enable_grad():
                with autocast(device_type, compute_dtype):
                    loss, terms = learner(micro, scales, key, delta)
                if factor is not None:
                    loss = loss * factor
                if pass_weight > 0.0:
                    loss.backward()
                    gradient = None if delta is None else delta.grad
                else:
                    assert delta is not None
                    (gradient,) = torch.autograd.grad(loss, delta, allow_unused=True)
                if gradient is not None and factor is not None:
                    gradient = gradient / factor
                if delta is not None and gradient is None:
                    name = objectives[micro.entry].config.name
                    raise IncompatibleError(
                        f"objective {name} does not read the embeddings adversarial training disturbs.",
                        hint="regularisation.adversarial.name=none, or another objective",
                    )
            if number == 0:
                first = {(micro.entry, t): value * (not micro.is_filler) for t, value in terms.items()}
        if exact is not None:
            exact.take(micro.entry, first, is_filler=micro.is_filler)
        else:
            for place, value in first.items():
                sums[place] = sums.get(place, torch.zeros_like(value)) + value
    if exact is not None:
        sums = exact.finish()
    if shards is not None:
        shards.take_gradients()

    # Check, clip, update. The flag stays on the device; the fused optimizer reads it there.
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if shards is None else shards.total_norm(gradients)
    is_finite = torch.isfinite(norm)
    shrink = None
    if factor is not None:
        norm, shrink = norm / factor, 1 / factor
    is_applied = is_finite if spikes is None else is_finite & ~spikes.take(norm, is_finite)
    if max_grad_norm > 0:
        clip = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        shrink = clip if shrink is None else clip * shrink
    if shrink is not None:
        torch._foreach_mul_(gradients, shrink)
    set_groups(optimizer, learning_rate, settings)
    optimizer.found_inf = (~is_applied).float()  # type: ignore[attr-defined]
    optimizer.step()
    if loss_scale is not None:
        loss_scale.update(is_finite)
    losses = {key: value / counts[key] for key, value in sums.items()}
    shares = {micro.entry: micro.share for micro in micro_batches}
    minimised = {(entry, term): weights[entry][term] * shares[entry] for entry, term in losses}
    return StepResult(losses, norm.detach(), is_applied, counts, minimised, factor)
