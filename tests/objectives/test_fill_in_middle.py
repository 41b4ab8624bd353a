"""Fill-in-the-middle: rows say the same text in another order, marked so that it can be put back."""

from __future__ import annotations

import pytest
import torch

from seedbed.data.store import DOCUMENT
from seedbed.errors import IncompatibleError
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.fill_in_middle import FillInMiddleConfig
from toys import RESERVED, VOCABULARY, toy_reader

LENGTH = 32


def build(*, is_segmented=False, **changes):
    return FillInMiddleConfig(**changes).build(RESERVED, row_length=LENGTH, is_segmented=is_segmented)


def put_back(ids: list[int], marks: tuple[int, int, int]) -> list[int]:
    """Undo the rearrangement of a row, wherever its document ends."""
    prefix, suffix, middle = (ids.index(mark) for mark in marks)
    begin, separator = prefix, VOCABULARY.separator_id
    tail = ids[middle + 1 :]
    # The document ends where its separator stands, or with the row.
    end = tail.index(separator) if separator in tail else len(tail)
    tail, rest = tail[:end], tail[end:]
    if suffix == prefix + 1:  # suffix first: <pre> <suf> suffix <mid> prefix middle
        text = tail + ids[suffix + 1 : middle]
    else:
        text = ids[prefix + 1 : suffix] + tail + ids[suffix + 1 : middle]
    return ids[:begin] + text + rest


@pytest.mark.parametrize("suffix_first_rate", [0.0, 1.0])
def test_the_text_can_be_put_back(suffix_first_rate):
    objective = build(fim_rate=1.0, suffix_first_rate=suffix_first_rate)
    rows, draws = toy_reader(LENGTH, num_documents=60).read(0, 40)
    moved = objective._rearranged(rows, draws)
    for before, after, length in zip(
        rows.ids.tolist(), moved.ids.tolist(), rows.lengths.tolist(), strict=True
    ):
        assert [after.count(mark) for mark in objective.marks] == [1, 1, 1]
        assert put_back(after[:length], objective.marks) == before[: length - 3]


def test_rates_are_the_papers():
    """Half of the rows are rearranged, half of those with the suffix first."""
    objective = build()
    rows, draws = toy_reader(LENGTH, num_documents=1200).read(0, 800)
    ids = objective._rearranged(rows, draws).ids
    prefix = objective.marks[0]
    moved = (ids == prefix).any(dim=1)
    assert float(moved.float().mean()) == pytest.approx(0.5, abs=0.05)
    place = (ids[moved] == prefix).to(torch.int8).argmax(dim=1)
    following = ids[moved].gather(1, (place + 1)[:, None])[:, 0]
    assert float((following == objective.marks[1]).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert torch.equal(ids[~moved], rows.ids[~moved])


def test_without_rearranging_it_is_causal_lm():
    rows, draws = toy_reader(LENGTH).read(0, 6)
    batch, targets = build(fim_rate=0.0).make_batch(rows, draws)
    plain = CausalLMConfig().build(RESERVED, row_length=LENGTH, is_segmented=False)
    other, others = plain.make_batch(rows, draws)
    assert torch.equal(batch.input_ids, other.input_ids)
    assert torch.equal(targets["fill_in_middle"].values, others["causal_lm"].values)


def test_inputs_are_the_targets_shifted():
    rows, draws = toy_reader(LENGTH).read(0, 12)
    batch, targets = build(fim_rate=1.0).make_batch(rows, draws)
    values = targets["fill_in_middle"].values.reshape(12, LENGTH)
    assert torch.equal(batch.input_ids[:, 1:], values[:, :-1])


def test_documents_stay_apart_when_they_must():
    """A rearranged document keeps its own segment."""
    objective = build(fim_rate=1.0, is_segmented=True)
    rows, draws = toy_reader(LENGTH, num_documents=60).read(0, 40)
    moved = objective._rearranged(rows, draws)
    batch, _ = objective.make_batch(rows, draws)
    for row in range(40):
        starts = int(((moved.marks[row, 1:] & DOCUMENT) != 0).sum())
        assert int(batch.segment_ids[row].max()) == 1 + starts
        assert starts >= int(((rows.marks[row, 1 : LENGTH - 3] & DOCUMENT) != 0).sum())


def test_a_vocabulary_without_reserve_is_refused():
    with pytest.raises(IncompatibleError, match="reserved tokens") as refused:
        FillInMiddleConfig().build(VOCABULARY, row_length=LENGTH, is_segmented=False)
    assert "num_reserved" in refused.value.hint
