"""The feed: what a window holds is a pure function of its number; a learner keeps each entry's modules apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seedbed.errors import ConfigError
from seedbed.objectives.masked_lm import MaskedLM, MaskedLMConfig
from seedbed.training.feed import Entry, Feed
from seedbed.training.step import Learner
from toys import VOCABULARY, toy_model, toy_reader

LENGTH = 16


class Grouped(MaskedLM):
    group_rows = 4


class WithHead(MaskedLM):
    def modules(self, trunk, head, *, seed=0):
        return {"trunk": trunk, "own": nn.Linear(32, 2)}


class WithTeacher(MaskedLM):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = nn.Linear(3, 3)

    def frozen(self):
        return {"teacher": self.teacher}


def objective(kind=MaskedLM):
    return kind(MaskedLMConfig(), VOCABULARY, row_length=LENGTH, is_segmented=False)


def entry(kind=MaskedLM, label="a", start=1.0, end=1.0):
    made = objective(kind)
    return Entry(label, made, toy_reader(made.raw_row_length), start, end)


def test_one_objective_reads_rows_one_after_another():
    feed = Feed([entry()], rows_per_step=6, num_windows=4, micro_batch_rows=4)
    reader = toy_reader(LENGTH - 1)
    for window in range(4):
        micros = feed.micro_batches(window)
        assert [m.batch.input_ids.shape[0] for m in micros] == [4, 2]
        assert [m.share for m in micros] == [1.0, 1.0]
        rows = torch.cat([m.batch.row_ids for m in micros])
        assert torch.equal(rows, reader.read(6 * window, 6)[0].row_ids)


def test_entries_of_a_mixture_go_on_where_they_were():
    feed = Feed([entry(), entry(Grouped, "b")], rows_per_step=12, num_windows=6, micro_batch_rows=5)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for window in range(6):
        micros = feed.micro_batches(window)
        assert sum({m.entry: m.share for m in micros}.values()) == pytest.approx(1.0)
        for micro in micros:
            seen[micro.entry] += micro.batch.row_ids.tolist()
            assert micro.batch.input_ids.shape[0] % (4 if micro.entry else 1) == 0
    for number, rows in seen.items():
        assert rows == feed.entries[number].reader.read(0, len(rows))[0].row_ids.tolist()
    again = Feed([entry(), entry(Grouped, "b")], rows_per_step=12, num_windows=6, micro_batch_rows=5)
    for one, other in zip(again.micro_batches(4), feed.micro_batches(4), strict=True):
        assert torch.equal(one.batch.input_ids, other.batch.input_ids)


def test_a_group_that_does_not_fit_a_forward_pass_is_refused():
    with pytest.raises(ConfigError, match="group of 4"):
        Feed([entry(Grouped)], rows_per_step=8, num_windows=1, micro_batch_rows=2)


def test_a_learner_keeps_heads_of_one_name_apart_and_shares_the_trunk():
    model = toy_model("bert")
    objectives = [objective(WithHead), objective(WithHead), objective()]
    learner = Learner(objectives, [o.modules(model.trunk, model.head) for o in objectives])
    first, second, third = (learner.modules_by_name(number) for number in range(3))
    assert first["trunk"] is second["trunk"] is third["trunk"] is model.trunk
    assert first["own"] is not second["own"]
    assert set(third) == {"trunk", "head"}
    names = [name for name, _ in learner.parts.named_parameters()]
    assert len(names) == len(set(names))


def test_a_teacher_is_moved_and_asked_but_neither_trained_nor_saved():
    model = toy_model("bert")
    made = objective(WithTeacher)
    learner = Learner([made], made.modules(model.trunk, model.head)).to(torch.float64)
    assert learner.modules_by_name()["teacher"] is made.teacher
    assert made.teacher.weight.dtype == torch.float64
    assert not made.teacher.weight.requires_grad
    assert not any("teacher" in name for name, _ in learner.named_parameters())
