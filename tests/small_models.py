"""Small models of every family, and batches for them."""

from __future__ import annotations

from typing import Any

import torch

from seedbed.batch import Attention, Batch
from seedbed.models import MODELS
from seedbed.models.language_model import LanguageModel, build_model

VOCAB = 50

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi_encoder": ("modernbert", {"positions": "alibi", "local_window": 40, "global_every_n": 2}),
    "alibi_decoder": ("llama", {"positions": "alibi", "num_kv_heads": 2}),
    "native_many": ("native_encoder", {"attention_gate": True, "inner_norm": True, "is_gated": True}),
    "sinusoidal_encoder": ("bert", {"positions": "sinusoidal", "embedding_scale": 3.0}),
    "relative_encoder": ("bert", {"positions": "relative", "head_scale": 0.5}),
    "relative_decoder": (
        "llama",
        {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 20, "attention_scale": 0.5},
    ),
}
"""Descriptions no family builds, by name: (family, changes)."""

TWO_STACKS = sorted(name for name, kind in MODELS.items() if kind.stack == "encoder_decoder")
ONE_STACK = sorted(set(MODELS) - set(TWO_STACKS))


def small_model(name: str, **changes: Any) -> LanguageModel:
    """Build a small model of a family or variant whose every weight matters, with `changes` to its full description."""
    name, own = VARIANTS.get(name, (name, {}))
    if changes.get("query_stream"):
        own = {key: value for key, value in own.items() if key not in ("local_window", "global_every_n")}
    section = MODELS[name].model_validate(
        {
            "num_layers": 3,
            "hidden_size": 32,
            "num_heads": 4,
            "ffn_size": 48,
            "max_length": 400,
            "initialisation_std": 0.2,
        }
    )
    model = build_model(section.build(vocab_size=VOCAB).updated(**{**own, **changes}), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def native_attention(model: LanguageModel) -> Attention:
    return "causal" if model.config.is_causal else "full"


def logits_of(model: LanguageModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(batch).last)
