from __future__ import annotations

import pytest
import torch

from seedbed.models import MODELS, TransformerConfig
from seedbed.models.pretraining_heads import EXTRA_HEADS, ReplacedTokenHead, SentencePairHead, init_head


def described(**changes: object) -> TransformerConfig:
    section = MODELS["bert"].model_validate({"num_layers": 1, "hidden_size": 64, "num_heads": 2})
    return section.build(vocab_size=20).updated(**changes)


def test_shapes() -> None:
    config = described()
    features = torch.randn(7, 64)
    assert SentencePairHead(config)(features).shape == (7, 2)
    assert ReplacedTokenHead(config)(features).shape == (7, 1)


@pytest.mark.parametrize("name", EXTRA_HEADS)
def test_a_seed_gives_the_same_head_and_touches_no_global_state(name: str) -> None:
    config = described()
    heads = [EXTRA_HEADS[name](config) for _ in range(3)]
    for head, seed, noise in zip(heads, (3, 3, 4), (1, 2, 3), strict=True):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        init_head(head, config, seed)
        assert torch.equal(before, torch.get_rng_state())
    first, again, other = (dict(head.named_parameters()) for head in heads)
    for key in first:
        assert torch.equal(first[key], again[key])
        assert (first[key] == 0).all() if key.endswith("bias") else not torch.equal(first[key], other[key])


def test_heads_start_as_the_trunk_does() -> None:
    config = described(hidden_size=256, head_dim=128, initialisation="normal", initialisation_std=0.05)
    head = SentencePairHead(config)
    init_head(head, config, 0)
    assert float(head.pooler.dense.weight.detach().std()) == pytest.approx(0.05, rel=0.03)


def test_the_hidden_layer_of_replaced_tokens_has_the_activation_of_the_trunk() -> None:
    features = torch.randn(5, 64)
    outs = []
    for activation in ("gelu", "relu"):
        config = described(activation=activation)
        head = ReplacedTokenHead(config)
        init_head(head, config, 0)
        outs.append(head(features))
    assert not torch.allclose(outs[0], outs[1])
