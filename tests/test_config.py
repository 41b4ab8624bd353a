"""Recipes: what is wrong is named with the nearest key, what is right survives YAML and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

import seedbed
from seedbed.config import Config, commented_yaml, load_config, one_of, validate
from seedbed.errors import ConfigError
from seedbed.models import MODELS
from seedbed.objectives import OBJECTIVES
from seedbed.optim import OPTIMIZERS
from seedbed.optim.schedule import SCHEDULES
from seedbed.recipe import DEFAULT_MODELS, Recipe


def refused(*overrides: str, recipe: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, recipe, overrides)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


# --- unknown keys name the nearest, at every level ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("trainning={}", "trainning", "training"),
        ("training.budget_minute=3", "training.budget_minute", "training.budget_minutes"),
        ("corpus.input=[a]", "corpus.input", "corpus.inputs"),
        ("runtime.thread=2", "runtime.thread", "runtime.threads"),
        ("model.num_layer=2", "model.num_layer", "model.num_layers"),  # inside a union, kind implied
        ("objective.mask_rat=0.3", "objective.mask_rat", "objective.mask_rate"),
        (
            "optim.schedule.warmup_fractoin=0.1",
            "optim.schedule.warmup_fractoin",
            "optim.schedule.warmup_fraction",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(override, unknown, nearest):
    error = refused(override)
    assert f"unknown key {unknown}" in error.message
    assert error.hint == f"did you mean {nearest}?"


@pytest.mark.parametrize("family", MODELS)
def test_the_nearest_key_is_of_the_chosen_kind(family):
    error = refused(f"model.name={family}", "model.hiden_size=8")
    assert "unknown key model.hiden_size" in error.message
    assert error.hint == "did you mean model.hidden_size?"


def test_a_key_of_another_kind_is_unknown():
    """rope_theta is a key of llama, not of bert; unions must not let it through."""
    load_config(Recipe, None, ["model.name=llama", "model.rope_theta=5000", "objective.name=causal_lm"])
    assert "unknown key model.rope_theta" in refused("model.name=bert", "model.rope_theta=5000").message


def test_a_key_like_nothing_lists_the_known_ones():
    error = refused("tokens.qqqqqq=1")
    assert "known keys here:" in error.hint
    assert "shard_tokens" in error.hint


@pytest.mark.parametrize(
    ("override", "message", "nearest"),
    [
        ("objective.name=masked_ml", "objective.name is 'masked_ml'", "masked_lm"),
        ("model.name=modernbret", "model.name is 'modernbret'", "modernbert"),
        ("optim.name=adanw", "optim.name is 'adanw'", "adamw"),
        ("optim.schedule.name=cosinus", "optim.schedule.name is 'cosinus'", "cosine"),
    ],
)
def test_an_unknown_kind_names_the_nearest(override, message, nearest):
    error = refused(override)
    assert message in error.message
    assert error.hint == f"did you mean {nearest}?"


def test_a_kind_like_nothing_lists_the_known_ones():
    assert refused("optim.name=zzzzzz").hint == f"choose one of {', '.join(OPTIMIZERS)}"


def test_every_problem_is_told_at_once():
    error = refused("training.sead=1", "model.num_layer=2", "data.row_length=3")
    for part in ("training.sead", "model.num_layer", "data.row_length", "(found 3)"):
        assert part in error.message


def test_a_missing_kind_lists_the_choices():
    class Round(Config):
        name: Literal["round"] = Field("round", description="x")

    class Square(Config):
        name: Literal["square"] = Field("square", description="x")

    class Holder(Config):
        shape: one_of({"round": Round, "square": Square}) = Field(Round(), description="x")

    with pytest.raises(ConfigError, match=r"shape\.name is missing") as caught:
        validate(Holder, {"shape": {}}, place="here")
    assert caught.value.hint == "choose one of round, square"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["training.budget_minutes=1", "training.budget_steps=2"], "give one budget"),
        (["training.budget_minutes=-1"], "training.budget_minutes"),
        (["training.budget_steps=1.5"], "training.budget_steps"),
        (["objective.mask_share=0.9", "objective.random_share=0.2"], "more than 1"),
        (["optim.learning_rate=.nan"], "optim.learning_rate"),
        (["optim.learning_rate=.inf"], "optim.learning_rate"),
        (["run=1"], "run"),
        (["model=3"], "model is not a section (found 3)"),
        (["optim.schedule=[1]"], "optim.schedule is not a section (found [1])"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_was_found(overrides, part):
    assert part in refused(*overrides).message


# --- overrides ---------------------------------------------------------------------------------------------------


def test_override_values_are_yaml():
    recipe = load_config(
        Recipe,
        None,
        [
            "corpus.inputs=[a b.txt, '中文/*.txt']",
            "training.budget_minutes=0.5",
            "tokenizer.lowercase=false",
            "model.num_layers=null",
            "optim.learning_rate=1e-3",  # YAML 1.1 reads this as a string; the type decides
            "run=runs/a=b",
        ],
    )
    assert recipe.corpus.inputs == ("a b.txt", "中文/*.txt")
    assert recipe.training.budget_minutes == 0.5
    assert recipe.tokenizer.lowercase is False
    assert recipe.model.num_layers is None
    assert recipe.optim.learning_rate == 1e-3
    assert recipe.run == "runs/a=b"


def test_the_last_override_wins_and_beats_the_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("training: {seed: 1, batch_tokens: 4096}\n", encoding="utf-8")
    recipe = load_config(Recipe, path, ["training.seed=2", "training.seed=3"])
    assert (recipe.training.seed, recipe.training.batch_tokens) == (3, 4096)


@pytest.mark.parametrize("override", ["training.seed", "=3", "training.seed=[", "training.seed=a: b: c"])
def test_a_malformed_override_is_shown(override):
    assert repr(override) in refused(override).message


def test_an_override_below_a_plain_value_is_refused():
    assert "run is a single value" in refused("run=x", "run.name=y").message


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"training:\n  seed: 1\n bad: 2\n", "line 3"),
        (b"a: 'open\n", "not valid YAML"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"just words\n", "holds a str"),
        (b"run: \xff\xfe\n", "is not UTF-8 (byte 5)"),
        (b"1: x\n", "1"),
        (
            b"training: {seed: 1}\nmodel: {}\ntraining: {}\n",
            "line 3, column 1: not valid YAML: the key 'training' is given twice",
        ),
        (b"!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_broken_file_names_itself_and_the_place(tmp_path, content, part):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    error = refused(recipe=path)
    assert "recipe.yaml" in error.message
    assert part in error.message


def test_a_missing_file_and_a_folder_are_config_errors(tmp_path):
    assert "nowhere.yaml" in refused(recipe=tmp_path / "nowhere.yaml").message
    forgotten = refused(recipe=Path("training.budget_minutes=5"))
    assert "the file of the recipe comes first" in forgotten.hint
    assert str(tmp_path) in refused(recipe=tmp_path).message


def test_an_empty_file_is_the_default_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    assert load_config(Recipe, path) == Recipe()


# --- round trips -------------------------------------------------------------------------------------------------


def variants() -> list[list[str]]:
    chosen: list[list[str]] = [[]]
    chosen += [[f"model.name={name}", "model.preset=tiny"] for name in MODELS]
    chosen += [[f"objective.name={name}"] for name in OBJECTIVES]
    chosen += [[f"optim.name={name}"] for name in OPTIMIZERS]
    chosen += [[f"optim.schedule.name={name}"] for name in SCHEDULES]
    chosen += [["corpus.inputs=[a, 'b c', '#d', '文字']", "run='a: b # c'", "training.budget_minutes=0.1"]]
    return chosen


@pytest.mark.parametrize("overrides", variants(), ids=" ".join)
def test_config_to_yaml_to_config(tmp_path, overrides):
    recipe = load_config(Recipe, None, overrides)
    text = commented_yaml(recipe)
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(Recipe, path) == recipe
    assert commented_yaml(load_config(Recipe, path)) == text
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe


class _Inner(Config):
    text: str = Field("", description="Any text.")


class _Texts(Config):
    one: str = Field("", description="Any text.")
    many: tuple[str, ...] = Field((), description="Any texts.")
    inner: _Inner = Field(_Inner(), description="A section.")


_TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("\n\r\x85\u2028\u2029:#'\"-.~&*!|>%@{}[], "))


@settings(max_examples=200, deadline=None)
@given(one=_TEXT, many=st.lists(_TEXT, max_size=3), inner=_TEXT)
def test_any_text_survives_the_commented_form(one, many, inner):
    """Colons, hashes, quotes, line ends, dots that end a YAML document: a path may hold them all."""
    config = _Texts(one=one, many=tuple(many), inner=_Inner(text=inner))
    assert validate(_Texts, yaml.safe_load(commented_yaml(config)), place="here") == config


@settings(max_examples=50, deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_rate_survives_the_commented_form(rate):
    class Rate(Config):
        rate: float = Field(0.0, description="x")

    assert yaml.safe_load(commented_yaml(Rate(rate=rate))) is not None
    assert validate(Rate, yaml.safe_load(commented_yaml(Rate(rate=rate))), place="here") == Rate(rate=rate)


def test_every_field_has_a_description():
    """`seedbed config` teaches; a key without a meaning teaches nothing."""
    schema = Recipe.model_json_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    bare = [
        f"{n}.{k}"
        for n, s in sections.items()
        for k, v in s.get("properties", {}).items()
        if not v.get("description")
    ]
    assert bare == []


# --- changing --------------------------------------------------------------------------------------------------


def test_a_config_cannot_be_mutated_and_updated_makes_a_valid_copy():
    recipe = Recipe()
    with pytest.raises(Exception, match="frozen"):
        recipe.run = "x"  # type: ignore[misc]
    assert recipe.updated(run="x") == load_config(Recipe, None, ["run=x"])
    with pytest.raises(ValueError, match="num_layers"):
        recipe.model.updated(num_layers=-1)


def test_updated_keeps_the_kinds_that_were_chosen():
    recipe = Recipe(model=MODELS["gpt2"](), objective=OBJECTIVES["causal_lm"](), optim=OPTIMIZERS["sgd"]())
    changed = recipe.updated(run="elsewhere")
    assert (changed.model, changed.objective, changed.optim) == (recipe.model, recipe.objective, recipe.optim)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_alone_implies_a_model(objective):
    assert load_config(Recipe, None, [f"objective.name={objective}"]).model.name == DEFAULT_MODELS[objective]
    chosen = load_config(Recipe, None, [f"objective.name={objective}", "model.name=bert"])
    assert chosen.model.name == "bert"


def test_a_family_brings_the_optimizer_that_random_weights_of_it_learn_with():
    def optim(*overrides):
        return load_config(Recipe, None, list(overrides)).optim

    usual, classic, t5 = optim(), optim("model.name=bert"), optim("objective.name=span_corruption")
    assert usual == OPTIMIZERS["adamw"]()
    assert classic.name == "adamw"
    assert classic.peak_rate < usual.peak_rate
    assert classic.schedule.warmup_fraction > usual.schedule.warmup_fraction
    assert t5.name == "adafactor"
    assert [(rule.pattern, rule.rate_scale) for rule in t5.rules] == [("head*", 4.0)]
    assert optim("model.name=t5", "optim.rules=[]").rules == ()
    # What the recipe says stands above it, key by key; another optimizer has its own rates.
    assert optim("model.name=bert", "optim.learning_rate=3e-3").learning_rate == 3e-3
    assert optim("model.name=bert", "optim.schedule.name=linear").schedule.warmup_fraction == 0.1
    assert optim("model.name=bert", "optim.name=muon") == OPTIMIZERS["muon"]()
    assert optim("model.name=t5", "optim.name=adamw") == usual
    # A model that exists is not begun from random weights.
    assert optim("start.path=runs/a", "model.name=bert") == usual
    # In code as in a file; and a section built in code is complete.
    assert Recipe(model=MODELS["bert"]()).optim == classic
    assert Recipe(model=MODELS["bert"](), optim=OPTIMIZERS["adamw"]()).optim == usual


# --- the shipped schema ----------------------------------------------------------------------------------------------

SCHEMA = Path(seedbed.__file__).with_name("recipe.schema.json")


def test_the_shipped_schema_is_the_codes(capsys):
    from seedbed.cli import main

    assert main(["config", "--schema"]) == 0
    assert SCHEMA.read_text(encoding="utf-8") == capsys.readouterr().out, (
        "run: seedbed config --schema > src/seedbed/recipe.schema.json"
    )


def test_a_section_without_a_name_fits_the_schema():
    """Editors refuse what fits two branches of `oneOf`; kinds differ in few keys, so only `anyOf` says what is meant."""
    assert '"oneOf"' not in SCHEMA.read_text(encoding="utf-8")
