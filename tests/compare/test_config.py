"""A comparison as a file: what arms inherit, what replaces it, what is refused."""

from __future__ import annotations

import pytest

from seedbed.compare.config import CompareConfig, CostConfig, lay_over
from seedbed.config import validate
from seedbed.errors import ConfigError


def config(**changes):
    data = {
        "recipe": {"model": {"preset": "mini"}, "objective": {"name": "masked_lm", "mask_rate": 0.3}},
        "arms": {
            "masked": {},
            "high": {"objective.mask_rate": 0.4},
            "causal": {"objective.name": "causal_lm"},
        },
        "cost": {"tokens": 1000},
    }
    return validate(CompareConfig, data | changes, place="test")


def test_arms_lie_over_what_they_share_and_another_kind_replaces_it():
    found = config()
    assert found.sections_of("high", 2)["objective"] == {"name": "masked_lm", "mask_rate": 0.4}
    causal = found.sections_of("causal", 0)
    assert causal["objective"] == {"name": "causal_lm"}
    assert causal["model"] == {"preset": "mini"}
    assert causal["training"] == {"budget_tokens": 1000, "seed": 0}


def test_the_cost_replaces_every_budget():
    found = config(recipe={"training": {"budget_steps": 5, "batch_tokens": 2048}}, cost={"minutes": 3})
    assert found.sections_of("masked", 1)["training"] == {
        "batch_tokens": 2048,
        "budget_minutes": 3.0,
        "seed": 1,
    }
    assert CostConfig(flops=1e12).kind == "flops"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cost": {"tokens": 5, "minutes": 1}}, "give one of tokens, flops, minutes and own"),
        ({"cost": {}}, "give one of tokens, flops, minutes and own, not none"),
        ({"arms": {"../up": {}}}, "part of a folder's"),
        ({"seeds": 0}, "at least one seed"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"armz": {}}, "arms"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, said):
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert said in f"{caught.value} {caught.value.hint}"


def test_seeds_are_a_number_or_a_list():
    assert config(seeds=2).seed_list() == [0, 1]
    assert config(seeds=[4, 7]).seed_list() == [4, 7]


def test_laying_over_leaves_both_as_they_were():
    below, above = {"a": {"x": 1, "y": {"z": 2}}}, {"a": {"y": {"w": 3}}, "b": 4}
    assert lay_over(below, above) == {"a": {"x": 1, "y": {"z": 2, "w": 3}}, "b": 4}
    assert below == {"a": {"x": 1, "y": {"z": 2}}}
