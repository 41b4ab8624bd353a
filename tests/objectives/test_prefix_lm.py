"""Prefix language modelling: both sides within the prefix, left to right behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from seedbed.objectives.prefix_lm import PrefixLMConfig
from toys import VOCABULARY, toy_model, toy_reader

LENGTH = 16


def build(**changes):
    return PrefixLMConfig(**changes).build(VOCABULARY, row_length=LENGTH, is_segmented=False)


def first_targets(batch):
    """The input at which each row's prediction begins."""
    return (batch.attend_order > 0).to(torch.int8).argmax(dim=1) - 1


def test_the_prefix_is_read_whole_and_the_rest_predicted():
    rows, draws = toy_reader(LENGTH, num_documents=400).read(0, 40)
    batch, targets = build().make_batch(rows, draws)
    target = targets["prefix_lm"]
    assert torch.equal(rows.ids.reshape(-1)[target.at], target.values)
    for row, cut in enumerate(first_targets(batch).tolist()):
        own = target.at[target.at // LENGTH == row] % LENGTH
        last = LENGTH - 1
        if (batch.attend_order[row] > 0).any():
            assert own.tolist() == list(range(cut, LENGTH))
        else:
            assert own.tolist() == [last]


def test_cuts_fall_evenly():
    rows, draws = toy_reader(LENGTH, num_documents=600).read(0, 500)
    _, targets = build().make_batch(rows, draws)
    counts = torch.bincount(targets["prefix_lm"].at // LENGTH, minlength=500)
    assert int(counts.min()) >= 1
    assert int(counts.max()) == LENGTH
    assert float(counts.float().mean()) == pytest.approx((LENGTH + 1) / 2, abs=0.7)


def test_nothing_behind_a_place_changes_its_prediction_and_the_prefix_does():
    model = toy_model("llama")
    objective = build(min_prefix_rate=0.4, max_prefix_rate=0.6)
    batch, _ = objective.make_batch(*toy_reader(LENGTH).read(0, 8))
    before = model.trunk(batch).last
    for row, cut in enumerate(first_targets(batch).tolist()):
        later = batch.input_ids.clone()
        later[row, cut + 2] = 5 + (later[row, cut + 2] - 4) % 50
        after = model.trunk(replace(batch, input_ids=later)).last
        assert torch.allclose(before[row, : cut + 2], after[row, : cut + 2], atol=1e-6)
        inside = batch.input_ids.clone()
        inside[row, cut] = 5 + (inside[row, cut] - 4) % 50  # the prefix's last token
        after = model.trunk(replace(batch, input_ids=inside)).last
        assert not torch.allclose(before[row, 0], after[row, 0], atol=1e-6)


def test_loss_equals_a_row_by_row_reference():
    model, objective = toy_model("llama"), build()
    batch, targets = objective.make_batch(*toy_reader(LENGTH).read(3, 4))
    found = objective.losses(objective.modules(model.trunk, model.head), batch, targets)["prefix_lm"].loss
    target, total = targets["prefix_lm"], 0.0
    for at, value in zip(target.at.tolist(), target.values.tolist(), strict=True):
        row, place = divmod(at, LENGTH)
        # Everything up to here, and nothing behind: the visible part alone, with its own order.
        alone = replace(
            batch,
            input_ids=batch.input_ids[row : row + 1, : place + 1],
            attend_order=batch.attend_order[row : row + 1, : place + 1],
            segment_ids=None,
            row_ids=None,
            has_padding=False,
        )
        logits = model.head(model.trunk(alone).last)[0, -1]
        total += F.cross_entropy(logits[None], torch.tensor([value])).item()
    assert found.item() == pytest.approx(total, rel=1e-4)
