"""Stochastic depth: which rows lose which sublayers, at which rate, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from seedbed.batch import Batch
from seedbed.hashing import key_from
from seedbed.models.huggingface import expressed
from seedbed.models.layers.dropout import Dropout
from toys import toy_model

KEY = key_from("step")


def test_a_sublayer_is_left_out_for_whole_rows_at_the_rate_of_its_layer():
    dropout = Dropout(KEY, torch.arange(20_000), 0.0, 0.0, depth_rate=0.4, num_layers=4)
    for layer in range(4):
        out = dropout.sublayer(torch.ones(20_000, 2, 3), site=3 * layer + 1, layer=layer, length=2)
        rate = 0.4 * (layer + 1) / 4
        kept = out[:, 0, 0] > 0
        assert (out == out[:, :1, :1]).all(), "a row is kept or left out whole"
        assert float((~kept).float().mean()) == pytest.approx(rate, abs=0.012)
        assert torch.allclose(out[kept], torch.tensor(1 / (1 - rate)))
    one, other = (dropout.sublayer(torch.ones(20_000, 1, 1), site=s, layer=3, length=1) for s in (10, 11))
    both = float(((one == 0) & (other == 0)).float().mean())
    assert both == pytest.approx(0.16, abs=0.012), "sublayers are left out apart"


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "t5", "xlnet", "albert"])
def test_it_is_a_function_of_the_row_and_of_training_alone(family):
    model = toy_model(family, stochastic_depth=0.5)
    plain = toy_model(family)
    ids = torch.randint(5, 60, (12, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, row_ids=torch.arange(100, 112), attention="causal" if family == "llama" else "full")
    if family == "t5":
        batch = replace(batch, decoder_input_ids=ids[:, :5])
    assert torch.equal(model.trunk(batch).last, plain.trunk(batch).last)
    whole = model.trunk(batch, dropout_key=KEY).last
    assert torch.equal(whole, model.trunk(batch, dropout_key=KEY).last)
    changed = [
        not torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, plain.trunk(batch).last, strict=True)
    ]
    assert sum(changed) >= 6
    part = replace(
        batch,
        input_ids=ids[3:7],
        row_ids=batch.row_ids[3:7],
        decoder_input_ids=None if batch.decoder_input_ids is None else ids[3:7, :5],
    )
    assert torch.allclose(whole[3:7], model.trunk(part, dropout_key=KEY).last, atol=1e-5)
    if family != "t5":
        at = torch.tensor([0, 10, 40, 71])
        assert torch.allclose(
            whole.flatten(0, 1)[at], model.trunk(batch, dropout_key=KEY, at=at).last, atol=1e-5
        )


def test_an_export_knows_nothing_of_it():
    assert expressed(toy_model("bert", stochastic_depth=0.3).config) == expressed(toy_model("bert").config)
