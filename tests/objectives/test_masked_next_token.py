"""Masked next-token prediction and the hybrid: hidden tokens are predicted one place earlier, from both sides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seedbed.config import validate
from seedbed.errors import IncompatibleError
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.combination import HybridConfig, entries_of
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.masked_next_token import MaskedNextTokenConfig
from seedbed.objectives.mixture import Share, rows_by_step
from toys import RESERVED, VOCABULARY, toy_model, toy_reader

LENGTH = 16


def build(**changes):
    return MaskedNextTokenConfig(**changes).build(VOCABULARY, row_length=LENGTH, is_segmented=False)


def test_each_target_is_predicted_from_the_place_before_it():
    objective = build(mask_rate=0.3, initial_mask_rate=None, mask_share=1.0, random_share=0.0)
    rows, draws = toy_reader(LENGTH, num_documents=400).read(0, 20)
    batch, targets = objective.make_batch(rows, draws)
    target = targets["masked_next_token"]
    assert (batch.input_ids[:, 0] == VOCABULARY.separator_id).all()
    row, place = target.at // LENGTH, target.at % LENGTH
    assert torch.equal(rows.ids[row, place], target.values)
    inside = place + 1 < LENGTH
    assert (batch.input_ids[row[inside], place[inside] + 1] == VOCABULARY.mask_id).all()
    unmasked = torch.ones(20, LENGTH, dtype=torch.bool)
    unmasked[row, place] = False
    assert torch.equal(batch.input_ids[:, 1:][unmasked[:, :-1]], rows.ids[:, :-1][unmasked[:, :-1]])
    assert batch.attention == "full"


def test_loss_is_that_of_a_shifted_masked_model():
    """A slow reference: run the model over every row by itself, read the logits one place to the left."""
    objective = build(mask_rate=0.2, initial_mask_rate=None)
    model = toy_model("llama")
    batch, targets = objective.make_batch(*toy_reader(LENGTH).read(0, 6))
    term = objective.losses(objective.modules(model.trunk, model.head), batch, targets)["masked_next_token"]
    target, total = targets["masked_next_token"], 0.0
    for number, (at, value) in enumerate(zip(target.at.tolist(), target.values.tolist(), strict=True)):
        ids = batch.input_ids[at // LENGTH][None]
        logits = model.head(model.trunk(type(batch)(ids)).last)[0, at % LENGTH]
        weight = 1.0 if target.weights is None else float(target.weights[number])
        total += weight * F.cross_entropy(logits[None], torch.tensor([value])).item()
    assert term.loss.item() == pytest.approx(total, rel=1e-4)


def test_it_sees_what_stands_behind():
    """Unlike a causal row, a later token changes the prediction."""
    model = toy_model("llama")
    batch, _ = build().make_batch(*toy_reader(LENGTH).read(0, 1))
    changed = batch.input_ids.clone()
    changed[0, -1] = 5 + (changed[0, -1] - 4) % 50
    before, after = model.trunk(batch).last, model.trunk(type(batch)(changed)).last
    assert not torch.allclose(before[0, 0], after[0, 0], atol=1e-5)


def test_it_hides_what_masked_lm_hides():
    rows, draws = toy_reader(LENGTH).read(0, 5)
    own = build(initial_mask_rate=None).masking(rows, draws)
    other = MaskedLMConfig(initial_mask_rate=None).build(VOCABULARY, row_length=LENGTH, is_segmented=False)
    assert torch.equal(own.ids, other.masking(rows, draws).ids)


def test_the_hybrid_is_causal_and_masked_rows_in_changing_shares():
    config = validate(HybridConfig, {"causal_share": 0.5, "final_causal_share": 0.25}, place="test")
    causal, masked = entries_of(config)
    assert isinstance(causal.objective, CausalLMConfig)
    assert isinstance(masked.objective, MaskedNextTokenConfig)
    shares = [Share(e.weight, e.final_weight) for e in (causal, masked)]
    table = rows_by_step(shares, rows_per_step=64, num_steps=200)
    assert table[0].tolist() == [32, 32]
    assert table[-1].tolist() == [16, 48]
    assert table.sum(axis=0) / table.sum() == pytest.approx([0.375, 0.625], abs=0.01)


def test_the_hybrid_needs_a_decoder_since_it_writes():
    causal, masked = entries_of(HybridConfig())
    encoder = toy_model("bert", vocabulary=RESERVED).config
    masked.objective.build(RESERVED, row_length=LENGTH, is_segmented=False).check(encoder)
    with pytest.raises(IncompatibleError, match="trains a decoder"):
        causal.objective.build(RESERVED, row_length=LENGTH, is_segmented=False).check(encoder)
