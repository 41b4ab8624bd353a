"""Decide what the workers of a run share (weights, layers, validation), and refuse what cannot be had with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from seedbed.errors import ConfigError, IncompatibleError
from seedbed.evaluation.intrinsic import Spread
from seedbed.models.config import TransformerConfig
from seedbed.models.transformer import Layer
from seedbed.objectives.combination import entries_of
from seedbed.recipe import Recipe
from seedbed.training.parallel import num_workers, sum_over_workers
from seedbed.training.state import TrainingState

if TYPE_CHECKING:
    from seedbed.commands.assembly import Setting

__all__ = ["check_sharding", "check_tensor_parallel", "fixed_bytes", "share_weights", "spread_of"]


def check_sharding(recipe: Recipe) -> None:
    """Refuse what cannot be had with shared weights, on any number of workers."""
    kind = recipe.runtime.sharding
    if kind == "none":
        return
    if recipe.training.exact:
        raise ConfigError(
            f"training.exact adds up whole gradients in a fixed order; with runtime.sharding={kind} no worker ever holds them.",
            hint="runtime.sharding=none, or training.exact=false",
        )
    if recipe.training.gradient_compression != "none":
        raise ConfigError(
            f"training.gradient_compression={recipe.training.gradient_compression} is a hook of DDP, which"
            f" runtime.sharding={kind} takes the place of.",
            hint="runtime.sharding=none, or training.gradient_compression=none",
        )
    if recipe.regularisation.adversarial.name == "smart":
        raise ConfigError(
            f"regularisation.adversarial smart differentiates inside its loss; with runtime.sharding={kind} that frees weights"
            " the rest of the loss still needs.",
            hint="runtime.sharding=none, or another kind of regularisation.adversarial",
        )


def check_tensor_parallel(recipe: Recipe, description: TransformerConfig) -> None:
    """Refuse what cannot be had where workers share each layer, on any number of workers."""
    size = recipe.runtime.tensor_parallel
    if size == 1:
        return
    off = "runtime.tensor_parallel=1"
    if num_workers() > 1 and num_workers() % size:
        raise ConfigError(
            f"runtime.tensor_parallel={size} needs a multiple of so many workers; there are {num_workers()}.",
            hint=f"torchrun --nproc-per-node {size}, or another number",
        )
    others = {
        "runtime.sharding": recipe.runtime.sharding != "none",
        "training.exact": recipe.training.exact,
        "training.gradient_compression": recipe.training.gradient_compression != "none",
        "objective distillation, which looks at single heads": any(
            section.objective.name == "distillation" for section in entries_of(recipe.objective)
        ),
        f"optim {recipe.optim.name}, which looks at whole matrices": recipe.optim.name
        in ("lamb", "adafactor", "muon", "normuon"),
    }
    if found := [name for name, is_on in others.items() if is_on]:
        raise ConfigError(
            f"runtime.tensor_parallel={size} does not go together with {', '.join(found)}.",
            hint=f"{off}, or change that",
        )
    odd = (
        description.inner_norm or description.attention_gate or description.positions in ("alibi", "relative")
    )
    if description.family not in ("gpt2", "llama") or odd:
        raise IncompatibleError(
            f"runtime.tensor_parallel cuts the layers of gpt2 and llama models; this one is {description.family}.",
            hint=f"{off}; runtime.sharding=full_shard shares any model",
        )
    sizes = {name: getattr(description, name) for name in ("num_heads", "num_kv_heads", "ffn_size")}
    if wrong := [f"{name} {number}" for name, number in sizes.items() if number % size]:
        raise IncompatibleError(
            f"runtime.tensor_parallel={size} does not divide {', '.join(wrong)} of the model.",
            hint=f"{off}, or sizes that it divides",
        )


def share_weights(recipe: Recipe, setting: Setting) -> None:
    """Share weights and optimizer among the workers, where there are several and the recipe says so; once."""
    runtime, state = recipe.runtime, setting.state
    if num_workers() == 1 or state.shards is not None:
        return
    # torch takes more than a second to import what these need.
    if runtime.sharding != "none":
        from seedbed.training.sharding import shard

        shard(state, kind=runtime.sharding, device=setting.device, model=setting.model)
    if runtime.tensor_parallel > 1:
        from seedbed.training.tensor_parallel import split

        split(state, size=runtime.tensor_parallel, device=setting.device, model=setting.model)


def fixed_bytes(recipe: Recipe, setting: Setting) -> int:
    """Return what weights, gradients and two moments take on each worker while it trains."""
    learner, kind = setting.state.learner, recipe.runtime.sharding
    whole = sum(p.numel() * p.element_size() for p in learner.parameters())
    if kind == "none" or num_workers() == 1:
        return 4 * whole
    if kind == "shard_grad_op":
        return 4 * whole // num_workers() + 2 * whole  # and whole weights and gradients in a backward pass
    layers = {id(p): p for m in learner.modules() if isinstance(m, Layer) for p in m.parameters()}
    in_layers = sum(p.numel() * p.element_size() for p in layers.values())
    # Gathered, with their gradients: what is outside layers, the layer at hand, and the weights of the next.
    return (
        4 * whole // num_workers()
        + 2 * (whole - in_layers)
        + 3 * in_layers // setting.model.config.num_layers
    )


def spread_of(state: TrainingState, recipe: Recipe) -> Spread | None:
    """Return how workers share the batches of a validation; None: each scores all, so that their number changes no bit."""
    if state.num_data_workers == 1 or recipe.training.exact:
        return None

    def add(sums: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        copies = num_workers() // state.num_data_workers
        return {key: value / copies for key, value in sum_over_workers(sums).items()}

    return Spread(state.data_worker, state.num_data_workers, add)
