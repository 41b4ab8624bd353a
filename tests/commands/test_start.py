"""Runs that go on from a model: the start is what it was, old text is scored and replayed, the stop rule acts, resumes are exact."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from seedbed.api import load
from seedbed.artifact import open_verified
from seedbed.commands import assembly, pretraining
from seedbed.commands.console import Console
from seedbed.commands.stages import prepare
from seedbed.commands.start import open_old_text, open_start
from seedbed.config import load_config, validate
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.models import MODELS
from seedbed.recipe import DEFAULT_MODELS, Recipe
from seedbed.training import loop
from seedbed.training.budget import Plan

ENGLISH = ["the", "a", "cat", "dog", "house", "river", "sings", "runs", "under", "and", "red", "old", "time"]
SEA = ["captain", "harbour", "the", "a", "sail", "storm", "wave", "anchor", "and", "salt", "deck", "old"]


def write_text(path: Path, words: list[str], *, num_documents: int = 30, seed: int = 1) -> Path:
    chooser = random.Random(seed)
    documents = [
        "\n".join(" ".join(chooser.choices(words, k=12)).capitalize() + "." for _ in range(6))
        for _ in range(num_documents)
    ]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def values(inputs, run, **sections):
    data = {
        "run": str(run),
        "corpus": {"inputs": [str(path) for path in inputs], "validation_fraction": 0.2},
        "data": {"row_length": 32},
        "training": {
            "budget_steps": 6,
            "batch_tokens": 256,
            "micro_batch_rows": 4,
            "validation_steps": 2,
            "validation_rows": 12,
        },
        "runtime": {"threads": 1},
    }
    for section, changes in sections.items():
        data[section] = {**data.get(section, {}), **changes} if isinstance(changes, dict) else changes
    return data


SMALL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 64}
VOCABULARY = {"vocab_size": 300, "num_reserved": 8}


class Signalled(list):
    """Stand in for the signal handler: a signal arrived."""

    def __init__(self):
        super().__init__([15])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def train(data, *, stop_after=None):
    recipe, console = validate(Recipe, data, place="test"), Console(as_json=True)
    with pytest.MonkeyPatch.context() as patch:
        if stop_after is not None:

            def stopping(state, run_window, **options):
                options["is_interrupted"] = lambda: state.window >= stop_after
                return loop.fit(state, run_window, **options)

            patch.setattr(pretraining, "fit", stopping)
            patch.setattr(pretraining, "_signals", Signalled)
        return pretraining.pretrain(recipe, prepare(recipe, console), console)


def lines_of(run: Path, kind: str):
    lines = map(json.loads, (run / "pretrain" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return write_text(folder / "old.txt", ENGLISH), write_text(folder / "new.txt", SEA, seed=2)


@pytest.fixture(scope="module")
def base(texts, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "run"
    train(values([texts[0]], run, model=SMALL, tokenizer=VOCABULARY, training={"budget_steps": 20}))
    return run


OBJECTIVE_OF = {"decoder": "causal_lm", "encoder": "masked_lm", "encoder_decoder": "span_corruption"}


@pytest.mark.parametrize("family", MODELS)
def test_a_start_of_any_family_is_the_model_it_was(texts, tmp_path, family):
    objective = {"name": OBJECTIVE_OF[MODELS[family].stack]}
    first = values([texts[0]], tmp_path / "first", tokenizer={**VOCABULARY, "num_reserved": 32})
    first |= {"model": {**SMALL, "name": family}, "objective": objective}
    first["training"] |= {"budget_steps": 2}
    before = train(first)["valid"]
    second = values([texts[0]], tmp_path / "second", objective=objective, training={"budget_steps": 1})
    second["start"] = {"path": str(tmp_path / "first")}
    summary = train(second)
    (at_start, _) = lines_of(tmp_path / "second", "validation")
    assert at_start["window"] == 0
    for name, value in before.items():
        assert at_start[name] == pytest.approx(value, rel=1e-6), name
        assert at_start[f"old.{name}"] == pytest.approx(value, rel=1e-6), name
    assert summary["family"] == family
    assert summary["start"]["new"] == []
    assert summary["start"]["taken"] == ["trunk", "head"]


def test_a_folder_of_transformers_is_a_start(texts, base, tmp_path):
    """The scores of step 0 are those transformers computes at the stored targets."""
    from transformers import BertConfig, BertForMaskedLM

    from seedbed.evaluation.fixed_targets import load_validation
    from seedbed.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(base / "model")
    torch.manual_seed(0)
    theirs = BertForMaskedLM(
        BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "bert")
    tokenizer.save(tmp_path / "bert")
    summary = train(values([texts[1]], tmp_path / "run", start={"path": str(tmp_path / "bert")}))
    assert summary["family"] == "bert"
    stored, _ = load_validation(open_verified(tmp_path / "run" / "validation", stage="validation"))
    total, count = 0.0, 0
    for batch, targets in stored.batches:
        target = targets["masked_lm"]
        with torch.no_grad():
            logits = theirs(batch.input_ids).logits.flatten(0, 1)[target.at]
        total += float(torch.nn.functional.cross_entropy(logits, target.values, reduction="sum"))
        count += len(target.at)
    # Unequal only by what bfloat16, if the machine has it, rounds.
    assert lines_of(tmp_path / "run", "validation")[0]["loss"] == pytest.approx(total / count, rel=2e-2)


def test_old_and_new_are_scored_and_the_statement_says_the_difference(texts, base, tmp_path):
    data = values([texts[1]], tmp_path / "run", start={"path": str(base)}, training={"budget_steps": 12})
    data["optim"] = {"learning_rate": 5e-3}
    summary = train(data)
    before = json.loads((base / "summary.json").read_text())["valid"]
    scored = lines_of(tmp_path / "run", "validation")
    assert scored[0]["old.loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert [line["window"] for line in scored] == [0, 2, 4, 6, 8, 10, 12]
    said = summary["continued"]
    assert said["gained"] == pytest.approx(scored[0]["loss"] - summary["valid_loss"])
    assert said["forgotten"] == pytest.approx(summary["valid"]["old.loss"] - scored[0]["old.loss"])
    assert said["gained"] > 0.1
    assert f"{said['gained']:.3f} nats" in said["sentence"]
    assert said["stopped_because"] == ""


def test_replayed_rows_are_a_share_of_each_step_and_are_remembered(texts, base, tmp_path):
    forgotten = {}
    for share in (0.0, 0.5):
        data = values([texts[1]], tmp_path / str(share), training={"budget_steps": 30, "keep_best": False})
        data |= {"start": {"path": str(base), "replay": {"share": share}}, "optim": {"learning_rate": 1e-2}}
        forgotten[share] = train(data)["continued"]["forgotten"]
    assert forgotten[0.5] < forgotten[0.0] - 0.05
    assert set(lines_of(tmp_path / "0.5", "step")[0]["losses"]) == {
        "masked_lm.masked_lm",
        "replay.masked_lm",
    }
    assert set(lines_of(tmp_path / "0.0", "step")[0]["losses"]) == {"masked_lm"}


def test_replay_gives_exactly_its_share(texts, base, tmp_path):
    data = values([texts[1]], tmp_path / "run", start={"path": str(base), "replay": {"share": 0.25}})
    recipe, console = validate(Recipe, data, place="test"), Console(as_json=True)
    prepared = prepare(recipe, console)
    start = open_start(recipe, prepared.tokenizer)
    old = open_old_text(recipe.start, start, prepared.tokenizer)
    setting = assembly.assemble(recipe, prepared, start, old)
    feed = assembly.feed_of(setting, Plan(10, 8, 4, 0.0, ""))
    assert [feed.rows(window) for window in range(10)] == [[6, 2]] * 10


@pytest.mark.parametrize("stops", [[1], [2], [3, 5]])
def test_replay_resumes_exactly(texts, base, tmp_path, stops):
    start = {"path": str(base), "replay": {"share": 0.3}, "max_forgetting": 5.0}
    train(values([texts[1]], tmp_path / "whole", start=start))
    for stop in stops:
        with pytest.raises(pretraining.Interrupted):
            train(values([texts[1]], tmp_path / "cut", start=start), stop_after=stop)
    train(values([texts[1]], tmp_path / "cut", start=start))
    assert pretraining.run_digest(tmp_path / "cut") == pretraining.run_digest(tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_begins_again(texts, base, tmp_path):
    """What it had written (the scores of the start, best weights of later steps) must not show in the result."""
    start = {"path": str(base), "replay": {"share": 0.3}}
    train(values([texts[1]], tmp_path / "whole", start=start))
    with pytest.raises(pretraining.Interrupted):
        train(values([texts[1]], tmp_path / "cut", start=start), stop_after=5)
    for path in (tmp_path / "cut" / "pretrain" / "checkpoints").glob("step-*"):
        shutil.rmtree(path)
    train(values([texts[1]], tmp_path / "cut", start=start))
    assert pretraining.run_digest(tmp_path / "cut") == pretraining.run_digest(tmp_path / "whole")


def test_a_start_that_has_changed_is_another_run(texts, tmp_path):
    base = values([texts[0]], tmp_path / "base", model=SMALL, tokenizer=VOCABULARY)
    train(base)
    data = values([texts[1]], tmp_path / "run", start={"path": str(tmp_path / "base")})
    with pytest.raises(pretraining.Interrupted):
        train(data, stop_after=3)
    base["training"] |= {"seed": 1}
    recipe, console = validate(Recipe, base, place="test"), Console(as_json=True)
    pretraining.pretrain(recipe, prepare(recipe, console), console, replace=True)
    with pytest.raises(IncompatibleError, match=r"start\.digest was"):
        train(data)


def test_sentence_vectors_start_from_a_masked_model(texts, base, tmp_path):
    """Dropout makes SimCSE's two views, and is one of the few keys a start leaves to the recipe."""
    data = values([texts[1]], tmp_path / "run", start={"path": str(base)}, objective={"name": "contrastive"})
    data |= {"model": {"hidden_dropout": 0.1}}
    data["objective"] |= {"group_rows": 8}
    data["training"] |= {"batch_tokens": 512, "micro_batch_rows": 16}
    summary = train(data)
    assert summary["start"]["taken"][0] == "trunk"
    assert load(tmp_path / "run").model.config.hidden_size == 32
    assert "forgotten" in summary["continued"]


def test_the_resolved_recipe_repeats_the_run_and_knows_its_start(texts, base, tmp_path):
    data = values([texts[1]], tmp_path / "run", start={"path": str(base), "replay": {"share": 0.3}})
    data["model"] = {"hidden_dropout": 0.1}
    train(data)
    again = load_config(Recipe, tmp_path / "run" / "recipe.yaml", [f"run={tmp_path / 'again'}"])
    pretraining.pretrain(again, prepare(again, Console(as_json=True)), Console(as_json=True))
    assert pretraining.run_digest(tmp_path / "again") == pretraining.run_digest(tmp_path / "run")
    resolved = json.loads((tmp_path / "run" / "pretrain" / "resolved.json").read_text())["resolved"]
    assert len(resolved["start"]["digest"]) == 64
    wrong = load_config(
        Recipe,
        tmp_path / "run" / "recipe.yaml",
        [f"run={tmp_path / 'other'}", f"start.digest={'f' * 64}"],
    )
    with pytest.raises(IncompatibleError, match=r"start\.digest is ffffffffffff"):
        pretraining.pretrain(wrong, prepare(wrong, Console(as_json=True)), Console(as_json=True))


def test_the_limit_on_forgetting_stops_and_exports_what_keeps_within_it(texts, base, tmp_path):
    data = values([texts[1]], tmp_path / "run", start={"path": str(base), "max_forgetting": 0.05})
    data |= {"optim": {"learning_rate": 2e-2}}
    data["training"] |= {"budget_steps": 60, "validation_steps": 3}
    summary = train(data)
    scored = lines_of(tmp_path / "run", "validation")
    rises = [line["old.loss"] - scored[0]["old.loss"] for line in scored]
    assert all(rise <= 0.05 for rise in rises[:-1])
    assert rises[-1] > 0.05
    assert summary["stopped_early"]
    assert summary["steps"] == scored[-1]["window"] < 60
    assert re.search(r"after step \d+ the old text was forgotten by 0\.\d+", summary["continued"]["sentence"])
    assert summary["continued"]["forgotten"] <= 0.05
    # Killed after the stop but before the export: it has stopped all the same.
    (tmp_path / "run" / "model").unlink()
    assert train(data)["steps"] == summary["steps"]
    assert lines_of(tmp_path / "run", "validation") == scored


def test_patience_counts_from_the_start(texts, base, tmp_path):
    """Nothing is gained at a rate of nearly zero: the start is the best there is, and is exported."""
    data = values([texts[1]], tmp_path / "run", start={"path": str(base)}, optim={"learning_rate": 1e-12})
    data["training"] |= {"budget_steps": 40, "early_stopping_patience": 2}
    data["optim"] |= {"name": "sgd", "learning_rate": 50.0}
    summary = train(data)
    assert summary["steps"] == 4
    assert summary["continued"]["gained"] == 0.0
    assert "early_stopping_patience" in summary["continued"]["stopped_because"]
    ours, theirs = load(tmp_path / "run").model, load(base).model
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


def test_the_last_state_is_taken_on(texts, base, tmp_path):
    data = values([texts[1]], tmp_path / "run", start={"path": str(base), "optimizer": "continue"})
    recipe, console = validate(Recipe, data, place="test"), Console(as_json=True)
    prepared = prepare(recipe, console)
    start = open_start(recipe, prepared.tokenizer)
    setting = assembly.assemble(recipe, prepared, start)
    newest = pretraining.Checkpoints(base / "pretrain" / "checkpoints", inputs={}).newest()
    assert newest.counts == {"window": 20}
    saved = pretraining.Checkpoints(base, inputs={})
    other = assembly.assemble(recipe, prepared, start)
    saved.load(other.state, newest)
    assert setting.state.window == 0
    ours, theirs = setting.state.optimizer_tensors(), other.state.optimizer_tensors()
    assert ours.keys() == theirs.keys()
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert train(data)["start"]["optimizer"] == "continue"
    with pytest.raises(IncompatibleError, match="moments do not carry over"):
        train(data | {"run": str(tmp_path / "other"), "optim": {"name": "sgd"}})
    with pytest.raises(IncompatibleError, match="does not fit what this recipe trains") as refused:
        train(data | {"run": str(tmp_path / "third"), "objective": {"name": "sentence_order"}})
    assert "start.optimizer=fresh" in refused.value.hint


def test_a_missing_head_is_new_and_listed_and_heads_without_use_are_left_out(texts, tmp_path):
    first = values([texts[0]], tmp_path / "first", model={**SMALL, "name": "bert"}, tokenizer=VOCABULARY)
    train(first | {"objective": {"name": "next_sentence", "masked_lm": None}})
    second = values([texts[0]], tmp_path / "second", start={"path": str(tmp_path / "first")})
    report = train(second | {"objective": {"name": "masked_lm"}})["start"]
    assert report["new"] == ["head"]
    assert list(report["left_out"]) == ["sentence_pair (a head)"]
    third = values([texts[0]], tmp_path / "third", start={"path": str(tmp_path / "first")})
    report = train(third | {"objective": {"name": "next_sentence", "masked_lm": None}})["start"]
    assert report["taken"] == ["trunk", "sentence_pair"]
    assert report["new"] == []


def test_a_start_can_be_made_larger(texts, base, tmp_path):
    start = {"path": str(base), "max_length": 1024, "grow": {"num_layers": 3, "how": "identity"}}
    summary = train(values([texts[1]], tmp_path / "run", start=start))
    (at_start, *_) = lines_of(tmp_path / "run", "validation")
    before = json.loads((base / "summary.json").read_text())["valid"]["loss"]
    config = load(tmp_path / "run").model.config
    assert (config.num_layers, config.max_length) == (3, 1024)
    # Silent layers keep the function; ntk positions do not quite.
    assert at_start["old.loss"] == pytest.approx(before, abs=0.2)
    assert summary["start"]["changed"] == ["positions 512 -> 1024", "layers 2 -> 3 (identity)"]


def test_words_of_the_new_text_join_the_vocabulary(texts, base, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from seedbed.tokenizer.tokenizer import Tokenizer

    start = {
        "path": str(base),
        "extend_vocabulary": {"num_tokens": 6, "min_count": 5},
        "replay": {"share": 0.25},
    }
    data = values([texts[1]], tmp_path / "run", start=start)
    summary = train(data)
    old, new = Tokenizer.load(base / "model"), Tokenizer.load(tmp_path / "run" / "model")
    report = json.loads((tmp_path / "run" / "tokenizer" / "report.json").read_text())
    made, after = report["extension"], report["validation"]["all"]
    assert (
        made["added"] == new.vocab_size - old.vocab_size == 3
    )  # the others hold letters the old text never had
    assert after["tokens_per_word"] < made["validation_before"]["all"]["tokens_per_word"]
    assert len(new.encode("storm")) == 1 < len(old.encode("storm"))
    model = load(tmp_path / "run").model
    assert model.config.vocab_size == new.vocab_size
    # A row of 32 and an offset for each word; the head is tied.
    (change,) = summary["start"]["changed"]
    assert change.endswith("99 weights more")
    # The old text keeps its tokens and targets; new words take a little probability from the others.
    (at_start, *_) = lines_of(tmp_path / "run", "validation")
    before = json.loads((base / "summary.json").read_text())["valid"]
    assert at_start["old.targets"] == before["targets"]
    assert before["loss"] - 1e-3 < at_start["old.loss"] < before["loss"] + 1.0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert theirs("The storm.", add_special_tokens=False)["input_ids"] == new.encode("The storm.")
    assert (
        AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").config.vocab_size == new.vocab_size
    )
    # The next run starts from there, and its old text is the base's, with fewer words still.
    again = values(
        [texts[1]], tmp_path / "next", start={"path": str(tmp_path / "run"), "replay": {"run": str(base)}}
    )
    assert "forgotten" in train(again)["continued"]
    other = values([texts[1]], tmp_path / "other", tokenizer=VOCABULARY | {"vocab_size": 120}, model=SMALL)
    train(other)
    wrong = values(
        [texts[1]], tmp_path / "wrong", start={"path": str(base), "replay": {"run": str(tmp_path / "other")}}
    )
    with pytest.raises(IncompatibleError, match="holds tokens of tokenizer"):
        train(wrong)


def test_new_text_every_day(tmp_path):
    """Append, continue from the last state, keep the validation set: its loss is one curve over all days."""
    runs, summaries = [], []
    for day in range(3):
        words = [ENGLISH, [*ENGLISH, *ENGLISH[:4]], ENGLISH[::-1]][day]
        text = write_text(tmp_path / f"{day}.txt", words, seed=day)
        data = values([text], tmp_path / f"run-{day}")
        data["training"] |= {"keep_best": False}
        if day:
            data["corpus"] = {"inputs": [str(tmp_path / "*.txt")], "append_to": str(runs[-1])}
            data["start"] = {"path": str(runs[-1]), "optimizer": "continue", "replay": {"share": 0.25}}
        else:
            data |= {"model": SMALL, "tokenizer": VOCABULARY}
        summaries.append(train(data))
        runs.append(tmp_path / f"run-{day}")
    for before, run, summary in zip(summaries, runs[1:], summaries[1:], strict=False):
        (at_start, *_) = lines_of(run, "validation")
        assert at_start["loss"] == before["valid_loss"] == at_start["old.loss"]
        assert at_start["targets"] == summaries[0]["valid"]["targets"]
        assert summary["continued"]["sentence"].startswith("on the validation set it keeps it gained")
        assert not (run / "validation-old").exists()
        counts = open_verified(run / "corpus").counts["splits"]
        assert counts["train"]["documents"] == 30
        assert counts["validation"] == open_verified(runs[0] / "corpus").counts["splits"]["validation"]


@pytest.mark.parametrize(
    ("sections", "kind", "words"),
    [
        ({"tokenizer": {"vocab_size": 400}}, ConfigError, "tokenizer.vocab_size=400"),
        ({"model": {"num_layers": 5}}, IncompatibleError, "model.num_layers is 5, the start's 2"),
        ({"model": {"preset": "base"}}, IncompatibleError, "model.preset=base has 12 layers"),
        ({"model": {"name": "bert"}}, IncompatibleError, "model.name is bert, the start is a modernbert"),
        ({"objective": {"name": "causal_lm"}}, IncompatibleError, "trains a decoder"),
        ({"start": {"max_length": 100}}, IncompatibleError, "100 would be fewer"),
        (
            {"start": {"path": None, "max_forgetting": 1.0}},
            ConfigError,
            "start.max_forgetting needs start.path",
        ),
        (
            {"start": {"optimizer": "continue", "grow": {"num_layers": 4}}},
            ConfigError,
            "nothing may be grown",
        ),
        ({"start": {"replay": {"run": "nowhere"}}}, ConfigError, "nowhere has no token store"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_with_what_to_do(texts, base, tmp_path, sections, kind, words):
    own = {"path": str(base), **sections.pop("start", {})} if "start" in sections else {"path": str(base)}
    with pytest.raises(kind, match=re.escape(words)) as refused:
        train(values([texts[1]], tmp_path / "run", start=own, **sections))
    assert refused.value.hint
    assert not (tmp_path / "run" / "pretrain").exists()


def test_a_folder_without_a_run_has_no_old_text(texts, base, tmp_path):
    summary = train(values([texts[1]], tmp_path / "run", start={"path": str(base / "model")}))
    assert "forgotten" in summary["continued"]  # a run's model folder knows its run
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (base / "model").iterdir():
        if path.name != "manifest.json":
            (copy / path.name).write_bytes(path.read_bytes())
    summary = train(values([texts[1]], tmp_path / "other", start={"path": str(copy)}))
    assert "forgotten" not in summary["continued"]
    with pytest.raises(ConfigError, match="no run with a token store is known") as refused:
        train(values([texts[1]], tmp_path / "third", start={"path": str(copy), "max_forgetting": 0.1}))
    assert "start.replay.run" in refused.value.hint


def test_runs_without_a_start_are_what_they_were(base):
    resolved = json.loads((base / "pretrain" / "resolved.json").read_text())["resolved"]
    assert "start" not in resolved
    assert set(open_verified(base / "model").manifest["inputs"]) == {"tokens", "tokenizer"}
    assert yaml.safe_load((base / "recipe.yaml").read_text())["start"]["path"] is None
    assert lines_of(base, "validation")[0]["window"] == 2


def test_every_objective_implies_a_family_only_without_a_start():
    assert DEFAULT_MODELS["causal_lm"] == "llama"
    recipe = validate(Recipe, {"objective": {"name": "causal_lm"}, "start": {"path": "x"}}, place="test")
    assert not recipe.model.model_fields_set
