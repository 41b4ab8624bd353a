import dataclasses

import numpy as np
import pytest
import torch

from seedbed.config import validate
from seedbed.data.store import SPECIAL, WORD
from seedbed.data.views import RowReader, WindowView
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.models.llama import LlamaConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.units import choose_targets, word_begins
from toys import VOCABULARY, ToySplit, toy_model, toy_reader


def build(row_length=17, **config):
    return MaskedLMConfig(**config).build(VOCABULARY, row_length=row_length, is_segmented=False)


def rows_of(num_rows, length=16, seed=0, **kwargs):
    return toy_reader(length, seed=seed, num_documents=60, **kwargs).read(0, num_rows)


def originals(batch, targets):
    ids = batch.input_ids.clone().reshape(-1)
    weights = torch.ones_like(targets.values) if targets.weights is None else targets.weights
    ids[targets.at[weights > 0]] = targets.values[weights > 0]
    return ids.reshape(batch.input_ids.shape)


def test_putting_the_targets_back_gives_the_rows():
    reader = toy_reader(16)
    rows, draws = reader.read(0, reader.num_rows)  # the short tail row too
    batch, targets = build().make_batch(rows, draws)
    restored = originals(batch, targets["masked_lm"])
    assert (restored[:, 0] == VOCABULARY.cls_id).all()
    inside = torch.arange(16)[None, :] < rows.lengths[:, None]
    assert torch.equal(restored[:, 1:][inside], rows.ids[inside])
    assert (restored[:, 1:][~inside] == VOCABULARY.pad_id).all()


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_number_of_targets_is_exact_and_separators_are_never_chosen(unit, rate):
    rows, draws = rows_of(40)
    _batch, targets = build(mask_rate=rate, unit=unit).make_batch(rows, draws)
    target = targets["masked_lm"]
    assert target.at.shape[0] == 40 * round(rate * 16)
    at = target.at.reshape(40, -1)
    assert all(len(set(row.tolist())) == len(row) for row in at)
    weights = torch.ones(at.shape) if target.weights is None else target.weights.reshape(at.shape)
    special = (rows.marks & SPECIAL) != 0
    for row in range(40):
        places = [int(a) - 17 * row - 1 for a, w in zip(at[row], weights[row], strict=True) if w > 0]
        assert not special[row, places].any()
    full = rows.lengths == 16
    assert full.sum() >= 39
    if unit == "token":
        assert (weights[full] == 1).all()


def test_words_are_masked_whole_or_not_at_all():
    rows, draws = rows_of(200)
    column, weights = choose_targets(rows, draws, rate=0.3, begins=word_begins(rows))
    chosen = torch.zeros(rows.shape, dtype=torch.bool)
    weights = torch.ones(column.shape) if weights is None else weights
    for row in range(200):
        chosen[row, column[row][weights[row] > 0]] = True
    begins = (rows.marks & WORD) != 0
    begins[:, 0] = True
    word = begins.long().cumsum(dim=1)
    cut = 0
    for row in range(200):
        for number in word[row].unique():
            inside = chosen[row][word[row] == number]
            assert inside.all() or not inside.any()
    filled = chosen.sum(dim=1)
    assert (filled <= round(0.3 * 16)).all()
    cut = (filled < round(0.3 * 16)).float().mean()
    assert cut < 0.1  # a row falls short only when no remaining word is small enough


def test_whole_words_are_chosen_as_often_as_their_share():
    """No length of word is favoured by much: long ones are passed over only at the end of the count."""
    rows, draws = rows_of(2000, length=64)
    column, weights = choose_targets(rows, draws, rate=0.15, begins=word_begins(rows))
    weights = torch.ones(column.shape) if weights is None else weights
    assert abs(weights.sum() / (2000 * round(0.15 * 64)) - 1) < 0.01


def test_shares_are_80_10_10_on_a_million_tokens():
    reader = toy_reader(128, num_documents=400)
    objective = build(row_length=129, mask_rate=0.5)
    num_masked = num_kept = num_random = total = 0
    while total < 500_000:
        rows, draws = reader.read(total // 64, 512)
        batch, targets = objective.make_batch(rows, draws)
        target = targets["masked_lm"]
        real = slice(None) if target.weights is None else target.weights > 0
        seen = batch.input_ids.reshape(-1)[target.at][real]
        values = target.values[real]
        num_masked += int((seen == VOCABULARY.mask_id).sum())
        num_kept += int((seen == values).sum())
        num_random += int(((seen != values) & (seen != VOCABULARY.mask_id)).sum())
        total += len(values)
    ordinary = 59
    assert abs(num_masked / total - 0.8) < 0.003
    # A random token is by chance the right one in 1 of 59 cases.
    assert abs(num_random / total - 0.1 * (1 - 1 / ordinary)) < 0.003
    assert abs(num_kept / total - 0.1 - 0.1 / ordinary) < 0.003


def test_random_replacements_are_ordinary_and_even():
    rows, draws = rows_of(2000, length=64)
    batch, targets = build(row_length=65, mask_rate=0.9, mask_share=0.0, random_share=1.0).make_batch(
        rows, draws
    )
    target = targets["masked_lm"]
    real = slice(None) if target.weights is None else target.weights > 0
    seen = batch.input_ids.reshape(-1)[target.at][real]
    counts = torch.bincount(seen, minlength=64).double()
    assert counts[:5].sum() == 0
    assert (counts[5:] / counts.sum() - 1 / 59).abs().max() < 0.003


def test_masks_do_not_depend_on_the_batch():
    reader = toy_reader(16)
    objective = build(unit="word")
    whole, _ = objective.make_batch(*reader.read(0, 8))
    for place in range(8):
        alone, _ = objective.make_batch(*reader.read(place, 1))
        assert torch.equal(alone.input_ids[0], whole.input_ids[place])


def test_masks_change_from_epoch_to_epoch():
    split = ToySplit(4)
    reader = RowReader(WindowView(split, length=16), name="windows", seed=0, shuffle=False)
    first, _ = build().make_batch(*reader.read(0, reader.num_rows))
    second, _ = build().make_batch(*reader.read(reader.num_rows, reader.num_rows))
    assert not torch.equal(first.input_ids, second.input_ids)


def test_the_rate_falls_over_the_run():
    objective = build(mask_rate=0.15, initial_mask_rate=0.45)
    assert [round(objective.masking.rate(p), 3) for p in (0.0, 0.5, 1.0)] == [0.45, 0.3, 0.15]
    rows, draws = rows_of(4)
    assert objective.make_batch(rows, draws, progress=0.0)[1]["masked_lm"].at.shape[0] == 4 * round(0.45 * 16)


def test_evaluation_uses_the_standard_corruption():
    objective = build(mask_rate=0.4, mask_share=1.0, random_share=0.0, unit="word").for_evaluation()
    assert (objective.config.mask_rate, objective.config.mask_share, objective.config.unit) == (
        0.15,
        0.8,
        "token",
    )


def test_segments_when_attention_stays_inside_documents():
    rows, draws = rows_of(8, length=64)
    objective = MaskedLMConfig().build(VOCABULARY, row_length=65, is_segmented=True)
    batch, _ = objective.make_batch(rows, draws)
    assert batch.is_segmented
    assert batch.segment_ids.shape == batch.input_ids.shape
    assert (batch.segment_ids[:, :2] == 1).all()


def test_a_vocabulary_without_a_mask_is_refused():
    with pytest.raises(IncompatibleError, match="mask token"):
        MaskedLMConfig().build(
            dataclasses.replace(VOCABULARY, mask_id=None), row_length=16, is_segmented=False
        )


def test_a_decoder_is_refused():
    with pytest.raises(IncompatibleError, match="trains an encoder"):
        build().check(LlamaConfig().build(vocab_size=64))


def test_rows_longer_than_the_model_are_refused():
    with pytest.raises(IncompatibleError, match="row_length is 65"):
        build(row_length=65).check(toy_model("bert").config)


def test_shares_above_one_are_refused():
    with pytest.raises(ConfigError, match="more than 1"):
        validate(MaskedLMConfig, {"mask_share": 0.9, "random_share": 0.2}, place="test")


def test_choice_is_uniform_over_places():
    rows, draws = toy_reader(16, num_documents=400).read(0, 600)
    column, _ = choose_targets(rows, draws, rate=0.25)
    counts = np.bincount(column.reshape(-1).numpy(), minlength=16) / column.numel()
    assert np.abs(counts - 1 / 16).max() < 0.02
