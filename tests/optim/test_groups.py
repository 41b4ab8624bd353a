import pytest
import torch
from torch import nn

from seedbed.config import validate
from seedbed.errors import ConfigError
from seedbed.optim import AdamWConfig
from seedbed.optim.groups import GroupRule, is_hidden_matrix, parameter_groups, set_groups
from seedbed.optim.muon import MuonConfig
from toys import toy_model


def by_name(groups):
    return {name: group for group in groups for name in group["names"]}


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), weight_decay=0.1)
    assert [g["names"] for g in groups] == [["weight"]]


def test_matrices_come_before_the_rest_even_without_decay():
    groups = parameter_groups(toy_model("bert").named_parameters(), weight_decay=0.0)
    assert [all(p.ndim >= 2 for p in g["params"]) for g in groups] == [True, False]


def test_the_first_rule_that_matches_counts():
    rules = (
        GroupRule(pattern="trunk.embedding.*", rate_scale=0.5, weight_decay=0.0),
        GroupRule(pattern=r"re:layers\.1\..*weight$", rate_scale=2.0),
        GroupRule(pattern="*.weight", weight_decay=0.7),
    )
    groups = by_name(parameter_groups(toy_model("bert").named_parameters(), weight_decay=0.1, rules=rules))
    embedding, second = groups["trunk.embedding.token.weight"], groups["trunk.layers.1.attention.qkv.weight"]
    assert (embedding["rate_scale"], embedding["weight_decay"]) == (0.5, 0.0)
    assert (second["rate_scale"], second["weight_decay"]) == (2.0, 0.1)
    assert groups["trunk.layers.1.attention_norm.weight"]["weight_decay"] == 0.0  # null: matrices only
    assert groups["trunk.layers.0.attention_norm.weight"]["weight_decay"] == 0.7
    assert groups["trunk.layers.0.attention.qkv.bias"]["weight_decay"] == 0.0


def test_a_rule_that_matches_nothing_is_refused_with_names_nearby():
    rules = (GroupRule(pattern="trunk.layer.0.attention.qkv.weight"),)
    with pytest.raises(ConfigError, match=r"optim.rules\[0\].pattern") as refused:
        AdamWConfig(rules=rules).build(toy_model("bert").named_parameters())
    assert "trunk.layers.0.attention.qkv.weight" in refused.value.hint


def test_an_optional_rule_may_match_nothing():
    rules = (GroupRule(pattern="head*", rate_scale=4.0, is_optional=True),)
    tied = AdamWConfig(rules=rules).build(toy_model("t5", tie_embeddings=True).named_parameters())
    assert {group["rate_scale"] for group in tied.param_groups} == {1.0}
    untied = AdamWConfig(rules=rules).build(toy_model("t5", tie_embeddings=False).named_parameters())
    (head,) = [group for group in untied.param_groups if group["rate_scale"] == 4.0]
    assert head["names"] == ["head.weight"]


def test_a_broken_expression_is_refused_by_the_recipe():
    with pytest.raises(ConfigError, match="not a regular expression"):
        validate(AdamWConfig, {"rules": [{"pattern": "re:("}]}, place="test")


def test_rules_are_read_from_a_recipe_and_scale_the_rate():
    config = validate(AdamWConfig, {"rules": [{"pattern": "*.embedding.*", "rate_scale": 0.1}]}, place="test")
    optimizer = config.build(toy_model("llama").named_parameters())
    set_groups(optimizer, 0.02)
    groups = by_name(optimizer.param_groups)
    assert groups["trunk.embedding.token.weight"]["lr"] == pytest.approx(0.002)
    assert groups["trunk.layers.0.attention.qkv.weight"]["lr"] == 0.02


def test_rates_fall_layer_by_layer():
    groups = by_name(
        parameter_groups(toy_model("modernbert").named_parameters(), weight_decay=0.1, layer_rate_decay=0.5)
    )
    scales = {name: group["rate_scale"] for name, group in groups.items()}
    assert scales["head.dense.weight"] == scales["trunk.final_norm.weight"] == 1.0
    assert scales["trunk.layers.1.attention.qkv.weight"] == 0.5
    assert scales["trunk.layers.0.feed_forward_norm.weight"] == 0.25
    assert scales["trunk.embedding.token.weight"] == 0.125


def test_stacks_are_counted_by_themselves():
    names = ["generator.layers.0.a.weight", "generator.embedding.b.weight", "generator_head.weight"]
    names += [f"trunk.layers.{i}.a.weight" for i in range(3)] + ["shared_embedding.weight"]
    named = [(name, nn.Parameter(torch.zeros(2, 2))) for name in names]
    groups = by_name(parameter_groups(named, weight_decay=0.0, layer_rate_decay=0.5))
    scales = [groups[name]["rate_scale"] for name in names]
    assert scales == [0.5, 0.25, 1.0, 0.125, 0.25, 0.5, 0.0625]


@pytest.mark.parametrize("width", [32, 64])
def test_rates_by_width(width):
    model = toy_model("llama", hidden_size=width, num_heads=2, ffn_size=2 * width)
    inverse = by_name(AdamWConfig(width_scaling="inverse", base_width=16).groups(model.named_parameters()))
    root = by_name(AdamWConfig(width_scaling="inverse_sqrt", base_width=16).groups(model.named_parameters()))
    for name, group in inverse.items():
        is_hidden = "layers" in name and "norm" not in name
        assert group["rate_scale"] == pytest.approx(16 / width if is_hidden else 1.0), name
        is_matrix = "norm" not in name
        assert root[name]["rate_scale"] == pytest.approx((16 / width) ** 0.5 if is_matrix else 1.0), name
    config = MuonConfig(
        width_scaling="inverse_sqrt", base_width=16, learning_rate=0.01, adam_learning_rate=0.01
    )
    muon = by_name(config.groups(model.named_parameters(), kind=_kind))
    assert muon["trunk.layers.0.attention.qkv.weight"]["rate_scale"] == 1.0
    assert muon["trunk.embedding.token.weight"]["rate_scale"] == pytest.approx((16 / width) ** 0.5)


def _kind(name, parameter):
    return "muon" if is_hidden_matrix(name, parameter) else "adamw"


def test_decay_follows_its_schedule():
    model = toy_model("llama")
    for kind, expected in (("constant", 0.2), ("linear", 0.1), ("rate", 0.2 * 0.5)):
        config = AdamWConfig(
            weight_decay=0.2,
            decay_schedule=kind,
            schedule={"name": "linear", "min_warmup_steps": 0, "warmup_fraction": 0.0},
        )
        optimizer = config.build(model.named_parameters())
        for step in (0, 50):
            set_groups(optimizer, config.rate(step, 100), config.settings(step, 100))
        decays = {g["weight_decay"] for g in optimizer.param_groups}
        assert sorted(decays) == pytest.approx([0.0, expected]), kind
