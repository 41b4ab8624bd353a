import pytest
import torch

from seedbed.errors import IncompatibleError
from seedbed.objectives.causal_lm import CausalLMConfig
from toys import VOCABULARY, toy_model, toy_reader


def build(row_length=16, is_segmented=False):
    return CausalLMConfig().build(VOCABULARY, row_length=row_length, is_segmented=is_segmented)


def test_each_token_is_a_target_exactly_once_an_epoch():
    reader = toy_reader(16)
    rows, draws = reader.read(0, reader.num_rows)
    batch, targets = build().make_batch(rows, draws)
    target = targets["causal_lm"]
    assert build().counts(targets)["causal_lm"] == reader.view.split.num_tokens
    real = target.values[target.weights > 0]
    assert sorted(real.tolist()) == sorted(reader.view.split.ids.tolist())
    assert (batch.input_ids[:, 0] == VOCABULARY.separator_id).all()
    full = rows.lengths == 16
    assert torch.equal(batch.input_ids[full, 1:], rows.ids[full, :-1])
    assert torch.equal(target.values.reshape(rows.ids.shape)[full], rows.ids[full])


def test_a_target_is_never_visible():
    """The logits that predict a token do not change when that token does."""
    model = toy_model("llama")
    rows, draws = toy_reader(16).read(0, 2)
    objective = build()
    batch, _ = objective.make_batch(rows, draws)
    before = model(batch).last
    for place in (3, 15):
        ids = rows.ids.clone()
        ids[:, place] = 5 + (ids[:, place] - 4) % 59
        changed, _ = objective.make_batch(
            rows.__class__(
                ids, *[getattr(rows, f) for f in ("marks", "lengths", "row_ids", "epochs", "is_full")]
            ),
            draws,
        )
        after = model(changed).last
        assert torch.allclose(before[:, : place + 1], after[:, : place + 1], atol=1e-6)
        if place < 15:
            assert not torch.allclose(before[:, place + 1], after[:, place + 1], atol=1e-6)


def test_segmented_rows_give_each_document_the_same_loss_whatever_its_neighbour():
    model = toy_model("llama")
    objective = build(row_length=64, is_segmented=True)
    rows, draws = toy_reader(64).read(0, 6)
    batch, _targets = objective.make_batch(rows, draws)
    hidden = model(batch).last
    segments = batch.segment_ids
    row = next(r for r in range(6) if int(segments[r].max()) >= 2)
    ids = rows.ids.clone()
    first = segments[row] == 1
    ids[row][first & (ids[row] > 4)] = 9
    changed, _ = objective.make_batch(
        rows.__class__(ids, rows.marks, rows.lengths, rows.row_ids, rows.epochs, rows.is_full), draws
    )
    second = segments[row] >= 2
    assert torch.allclose(hidden[row][second], model(changed).last[row][second], atol=1e-6)
    assert not torch.allclose(hidden[row][first], model(changed).last[row][first], atol=1e-4)


def test_an_encoder_is_refused():
    with pytest.raises(IncompatibleError, match="trains a decoder"):
        build().check(toy_model("bert").config)
