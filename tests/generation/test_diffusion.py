"""Writing by diffusion: every mask is written, nothing else is touched, one step at a time equals the model's own choices."""

from __future__ import annotations

import pytest
import torch

from seedbed.batch import Batch
from seedbed.errors import ConfigError, DataError
from seedbed.generation.diffusion import diffuse
from seedbed.generation.fill import fill_mask
from seedbed.generation.samplers import Sampler
from toys import VOCABULARY, toy_model

MASK = VOCABULARY.mask_id
ROW = [2, 9, MASK, 11, MASK, MASK, 30, MASK]


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 50])
def test_all_masks_are_written_and_the_rest_is_kept(order, steps):
    model = toy_model("modernbert")
    sampler = Sampler(temperature=1.0, seed=5)
    row = diffuse(model, ROW, mask_id=MASK, num_steps=steps, sampler=sampler, order=order)
    assert MASK not in row
    assert all(new == old for new, old in zip(row, ROW, strict=True) if old != MASK)
    assert row == diffuse(model, ROW, mask_id=MASK, num_steps=steps, sampler=sampler, order=order)


def test_another_seed_writes_another_text():
    model = toy_model("modernbert")
    rows = [
        diffuse(model, ROW, mask_id=MASK, num_steps=4, sampler=Sampler(temperature=1.0, seed=seed))
        for seed in range(4)
    ]
    assert len({tuple(row) for row in rows}) > 1


def test_one_greedy_step_takes_the_best_token_of_every_place():
    model = toy_model("modernbert")
    logits = model.logits(model.trunk(Batch(torch.tensor([ROW]))).last)[0]
    logits[:, MASK] = float("-inf")
    expected = [int(logits[i].argmax()) if token == MASK else token for i, token in enumerate(ROW)]
    assert diffuse(model, ROW, mask_id=MASK, num_steps=1) == expected


def test_the_surest_place_is_written_first():
    model = toy_model("modernbert")
    logits = model.logits(model.trunk(Batch(torch.tensor([ROW]))).last)[0].float()
    logits[:, MASK] = float("-inf")
    best = logits.log_softmax(-1).max(-1)
    places = [i for i, token in enumerate(ROW) if token == MASK]
    surest = max(places, key=lambda i: best.values[i].item())
    row = diffuse(model, ROW, mask_id=MASK, num_steps=4, order="confidence")
    assert row[surest] == int(best.indices[surest])


def test_what_cannot_be_is_refused():
    model = toy_model("modernbert", max_length=8)
    with pytest.raises(ConfigError):
        diffuse(model, ROW, mask_id=MASK, num_steps=0)
    with pytest.raises(DataError, match="9 tokens"):
        diffuse(model, [*ROW, 5], mask_id=MASK, num_steps=1)


def test_a_shifted_model_reads_both_sides_and_answers_one_place_earlier():
    model = toy_model("llama")
    ids = [3, 9, MASK, 11]
    ((first, *_),) = fill_mask(model, ids, [2], is_shifted=True)
    logits = model.logits(model.trunk(Batch(torch.tensor([ids]))).last)[0, 1]
    assert first.token_id == int(logits.argmax())
    ((other, *_),) = fill_mask(model, [3, 9, MASK, 50], [2], is_shifted=True)
    assert other.probability != first.probability
    with pytest.raises(DataError, match="before the first place"):
        fill_mask(model, [MASK, 9], [0], is_shifted=True)
