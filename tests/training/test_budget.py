"""Budgets become steps, memory becomes a micro-batch."""

from dataclasses import replace

import pytest
import torch

from seedbed.errors import MemoryLimitError
from seedbed.models.heads import LMHead, limit_logits
from seedbed.models.trunks import set_recomputing
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.training.budget import fit_micro_batch, plan_steps, saved_bytes
from seedbed.training.config import TrainingConfig
from seedbed.training.step import Learner, MicroBatch
from toys import VOCABULARY, toy_model, toy_reader


def plan(measure=None, **config):
    return plan_steps(
        TrainingConfig(batch_tokens=1280, **config), row_length=128, micro_batch_rows=5, measure=measure
    )


def test_tokens_and_steps_need_no_clock():
    assert plan(budget_steps=7).num_windows == 7
    assert plan(budget_tokens=12_800).num_windows == 10
    assert plan(budget_tokens=5).num_windows == 1
    assert plan(budget_steps=7).rows_per_step == 10


def test_minutes_become_steps_with_validation_paid_for():
    planned = plan(measure=lambda: (0.5, 1.0), budget_minutes=2.0)
    assert planned.num_windows == int((120 - 20 * 1.0) / 0.5)
    assert planned.forecast_seconds == pytest.approx(120, abs=1)
    own = plan(measure=lambda: (0.5, 1.0), budget_minutes=2.0, validation_steps=2)
    assert own.num_windows == 120


def test_validations_that_take_long_are_made_less_often():
    """Twenty of 19 s would fill five minutes and leave one step."""
    planned = plan(measure=lambda: (0.5, 19.0), budget_minutes=5.0)
    assert planned.num_windows == int((300 - 3 * 19.0) / 0.5)
    assert planned.num_windows // planned.every() == 3
    assert planned.forecast_seconds == pytest.approx(300, abs=1)
    twice = plan(measure=lambda: (0.5, 100.0), budget_minutes=5.0)
    assert (twice.num_windows, twice.num_windows // twice.every()) == (200, 2)
    usual = plan(measure=lambda: (0.5, 1.0), budget_minutes=5.0)
    assert usual.every() == usual.num_windows // 20 == plan(budget_steps=usual.num_windows).every()
    cut = plan(measure=lambda: (0.5, 19.0), budget_steps=10_000, max_minutes=5.0)
    assert (cut.num_windows, cut.every()) == (planned.num_windows, planned.every())


def test_no_budget_is_five_minutes():
    assert plan(measure=lambda: (1.0, 0.0)).num_windows == 300


def test_a_budget_that_takes_too_long_is_cut_and_said_so():
    planned = plan(measure=lambda: (1.0, 0.0), budget_steps=1000, max_minutes=5.0)
    assert planned.num_windows == 300
    assert "cut from 1000 to 300 steps" in planned.note
    assert plan(measure=lambda: (0.1, 0.0), budget_steps=1000, max_minutes=5.0).note == ""


def learner_and_sample(**model):
    objective = MaskedLMConfig().build(VOCABULARY, row_length=33, is_segmented=False)
    language_model = toy_model("modernbert", **model)
    learner = Learner([objective], objective.modules(language_model.trunk, language_model.head))
    reader = toy_reader(32, num_documents=60)
    return learner, lambda count: MicroBatch(*objective.make_batch(*reader.read(0, count)))


def test_saved_bytes_grow_with_rows_and_layers_and_not_with_noise():
    learner, sample = learner_and_sample()
    two, four = (saved_bytes(learner, sample(n), compute_dtype=torch.float32) for n in (2, 4))
    assert two == saved_bytes(learner, sample(2), compute_dtype=torch.float32)
    assert 1.7 < four / two < 2.1
    deeper, sample = learner_and_sample(num_layers=4)
    assert saved_bytes(deeper, sample(2), compute_dtype=torch.float32) > 1.5 * two


def test_the_micro_batch_divides_the_step_and_fits():
    learner, sample = learner_and_sample()
    per_row = saved_bytes(learner, sample(2), compute_dtype=torch.float32) / 2 * 1.5
    fixed = 4 * sum(p.numel() * 4 for p in learner.parameters())

    def fit(rows, memory):
        return fit_micro_batch(
            learner, sample, rows_per_step=rows, memory_bytes=memory, compute_dtype=torch.float32
        )

    assert fit(24, int(fixed + 7.5 * per_row)) == 6
    assert fit(24, 10**12) == 24
    assert fit(128, 10**12) == 64
    with pytest.raises(MemoryLimitError, match="one row needs"):
        fit(24, int(fixed + 0.5 * per_row))


def test_more_rows_fit_where_layers_run_again():
    learner, sample = learner_and_sample(num_layers=8)
    fixed = 4 * sum(p.numel() * 4 for p in learner.parameters())
    memory = int(fixed + 6 * saved_bytes(learner, sample(2), compute_dtype=torch.float32))

    def fit(num_layers):
        return fit_micro_batch(
            learner,
            sample,
            rows_per_step=64,
            memory_bytes=memory,
            compute_dtype=torch.float32,
            num_recomputed_layers=num_layers,
        )

    plain = fit(0)
    set_recomputing(learner, True)
    assert fit(8) >= 2 * plain


def test_a_loss_by_portions_lets_more_rows_fit():
    """Its gradient of the matrix is paid for once, not by the row, and the forecast holds for what a larger micro-batch keeps."""
    many = replace(VOCABULARY, vocab_size=4096)
    objective = CausalLMConfig().build(many, row_length=16, is_segmented=False)
    model = toy_model("llama", vocabulary=many)
    learner = Learner([objective], objective.modules(model.trunk, model.head))
    reader = toy_reader(objective.raw_row_length)

    def sample(rows):
        return MicroBatch(*objective.make_batch(*reader.read(0, rows)))

    def fitting(num_bytes):
        return fit_micro_batch(
            learner,
            sample,
            rows_per_step=720_720,
            memory_bytes=num_bytes,
            compute_dtype=torch.float32,
            max_rows=720_720,
        )

    weights = 4 * sum(p.numel() * 4 for p in learner.parameters())
    memory = weights + 32 * 2**20
    plain = fitting(memory)
    limit = 64 * 4 * 4096  # 64 rows of logits
    limit_logits(learner, limit)
    by_portions = fitting(memory)
    assert by_portions > 2 * plain
    assert {head.logits_bytes for head in learner.modules() if isinstance(head, LMHead)} == {limit}
    kept = saved_bytes(learner, sample(by_portions), compute_dtype=torch.float32)
    assert weights + kept < memory < weights + 4 * kept
