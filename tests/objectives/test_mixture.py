"""Mixtures: shares kept exactly, groups kept whole, labels of their own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed.config import validate
from seedbed.errors import ConfigError
from seedbed.objectives.combination import entries_of
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.mixture import MixtureConfig, Share, rows_by_step


@given(
    weights=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=5),
    rows=st.integers(1, 70),
    steps=st.integers(1, 40),
)
def test_every_step_is_full_and_shares_are_kept(weights, rows, steps):
    table = rows_by_step([Share(w, w) for w in weights], rows_per_step=rows, num_steps=steps)
    assert table.shape == (steps, len(weights))
    assert (table >= 0).all()
    assert (table.sum(axis=1) == rows).all()
    exact = np.arange(1, steps + 1)[:, None] * rows * np.array(weights) / sum(weights)
    assert np.abs(table.cumsum(axis=0) - exact).max() < len(weights)


@given(
    groups=st.lists(st.sampled_from([1, 2, 3, 8]), min_size=1, max_size=4),
    rows=st.integers(8, 64),
    steps=st.integers(1, 30),
)
def test_groups_are_never_cut(groups, rows, steps):
    shares = [Share(1.0 + i, 2.0, group) for i, group in enumerate(groups)]
    table = rows_by_step(shares, rows_per_step=rows, num_steps=steps)
    assert (table % np.array(groups) == 0).all()
    assert (table.sum(axis=1) <= rows).all()
    assert (table.sum(axis=1) > 0).all()


def test_shares_move_over_the_run():
    table = rows_by_step([Share(1.0, 0.0), Share(0.0, 1.0)], rows_per_step=10, num_steps=100)
    assert table[0].tolist() == [10, 0]
    assert table[50].tolist() == [5, 5]
    assert abs(table[:, 0].sum() - table[:, 1].sum()) <= 10


def test_one_entry_gets_every_row():
    assert rows_by_step([Share(3.0, 1.0)], rows_per_step=7, num_steps=3).tolist() == [[7], [7], [7]]


def test_a_group_larger_than_a_step_is_refused():
    with pytest.raises(ConfigError, match="group of 16"):
        rows_by_step([Share(1.0, 1.0, 16)], rows_per_step=8, num_steps=2)


def test_labels_are_told_apart():
    config = validate(
        MixtureConfig,
        {
            "entries": [
                {"objective": {"name": "masked_lm"}},
                {"objective": {"name": "masked_lm", "unit": "word"}},
                {"objective": {"name": "causal_lm"}, "label": "left"},
            ]
        },
        place="test",
    )
    assert [entry.label for entry in config.entries] == ["masked_lm", "masked_lm:2", "left"]
    assert [entry.label for entry in entries_of(config)] == ["masked_lm", "masked_lm:2", "left"]
    assert [entry.label for entry in entries_of(MaskedLMConfig())] == ["masked_lm"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "entries"),
        ([{"objective": {"name": "masked_lm"}, "weight": 0.0}], "weight 0 at the start"),
        ([{"objective": {"name": "masked_lm"}, "final_weight": 0.0}], "weight 0 at the end"),
        ([{"objective": {"name": "mixture"}}], "mixture"),
        (
            [
                {"objective": {"name": "masked_lm"}, "label": "a"},
                {"objective": {"name": "causal_lm"}, "label": "a"},
            ],
            "twice",
        ),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        validate(MixtureConfig, {"entries": entries}, place="test")
