"""Every recipe is short, valid, explained, and trains; every example runs on what a recipe makes."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from seedbed.cli import main
from seedbed.config import load_config
from seedbed.objectives import OBJECTIVES
from seedbed.objectives.combination import COMBINATIONS, entries_of
from seedbed.recipe import Recipe
from tiny_runs import TINY, write_toy_text

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory):
    return write_toy_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A working folder with the files the recipes for labelled texts name."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "text").mkdir()
    lines = [f"alice went to the {place} {i}\t{place}" for i in range(12) for place in ("garden", "queen")]
    for name in ("labels.tsv", "answers.tsv"):
        (folder / "text" / name).write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny(toy_text: Path, run: Path) -> list[str]:
    return [f"run={run}", f'corpus.inputs=["{toy_text}"]', *TINY]


def needed(path: Path, trained: Callable[[str], Path]) -> list[str]:
    """What a recipe that begins with a model is given: a tiny one, made by another recipe."""
    recipe = load_config(Recipe, path)
    if recipe.start.path is not None:
        overrides = [f"start.path={trained('wiki_en')}", "start.max_forgetting=null"]
        return overrides + (["objective.group_rows=4"] if recipe.objective.name == "contrastive" else [])
    if recipe.objective.name == "distillation":
        teacher = trained("wiki_en")
        return [f"objective.teacher={teacher}", f"tokenizer.path={teacher}", "model.num_layers=1"]
    return []


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_short_valid_and_explained(path):
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) < 15
    header = text[: text.index("\nrun:")]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("command:", "hardware:", "time:", "expected:"):
        assert word in header
    assert f"recipes/{path.name}" in header
    assert load_config(Recipe, path).run == yaml.safe_load(text)["run"]


def test_there_are_recipes_for_both_languages_and_every_strategy():
    recipes = [load_config(Recipe, path) for path in RECIPES]
    named = {recipe.objective.name for recipe in recipes}
    named |= {entry.objective.name for recipe in recipes for entry in entries_of(recipe.objective)}
    assert named == {*OBJECTIVES, *COMBINATIONS}
    assert {"demo_en", "demo_zh", "wiki_en", "wiki_zh"} <= {path.stem for path in RECIPES}
    assert len({recipe.run for recipe in recipes}) == len(recipes), "two recipes share a run folder"


@pytest.fixture(scope="session")
def trained(toy_text, labelled, tmp_path_factory):
    """Run a recipe for two steps, once a session; return the run folder."""
    runs: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in runs:
            path = ROOT / "recipes" / f"{name}.yaml"
            own = needed(path, run)
            overrides = tiny(toy_text, tmp_path_factory.mktemp(name) / "run")
            if own and "start" in own[0]:  # brings its own model
                overrides = [key for key in overrides if not key.startswith(("model.", "tokenizer."))]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(labelled)
                assert main(["run", str(path), *overrides, *own, "--json"]) == 0
            runs[name] = Path(overrides[0].removeprefix("run="))
        return runs[name]

    return run


@pytest.mark.parametrize("name", [path.stem for path in RECIPES])
def test_a_recipe_trains_two_steps(trained, name, capsys):
    run = trained(name)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 2
    assert 0 < summary["valid_loss"] < 50  # of two steps; detection counts fifty times
    assert any(key.split(".")[-1] in ("unigram", "chance") for key in summary["baselines"])
    assert (run / "model" / "config.json").is_file()
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8")
    printed = (
        capsys.readouterr().out
    )  # empty where another test made the run; after that of the start, if any
    assert not printed or printed.endswith(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_demo_recipe_is_the_demo(language):
    """The recipes say they are what the command runs; hold them to it."""
    from seedbed.commands import demo
    from seedbed.corpus.bundled import bundled_corpus

    recipe = load_config(Recipe, ROOT / "recipes" / f"demo_{language}.yaml")
    assert (recipe.training.budget_tokens, recipe.training.max_minutes) == (demo.TOKENS, demo.MAX_MINUTES)
    (inputs,) = recipe.corpus.inputs
    assert (ROOT / inputs).resolve() == bundled_corpus(language).resolve()
    plain = Recipe().model_dump(exclude={"run", "corpus", "training"})
    assert recipe.model_dump(exclude={"run", "corpus", "training"}) == plain


# --- examples --------------------------------------------------------------------------------------------------------


def run_example(name: str, *arguments: object, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_quickstart_example(trained, monkeypatch, capsys):
    masked, causal = trained("demo_en"), trained("causal")
    capsys.readouterr()
    run_example("quickstart.py", masked, causal, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"0\.\d{3}  \S+  .+", line) for line in lines[:3])
    assert -1 <= float(lines[3]) <= 1.0001
    assert lines[4].startswith("Alice was")


def test_the_transformers_example_says_what_we_say(trained, monkeypatch, capsys):
    import seedbed

    run = trained("demo_en")
    capsys.readouterr()
    run_example("open_in_transformers.py", run, monkeypatch=monkeypatch)
    ours = [c.token for c in seedbed.load(run).fill_mask("Alice was not a bit [MASK].")[0]]
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(ours)


def test_the_finetune_example(trained, tmp_path, monkeypatch, capsys):
    lines = [f"Alice went to the {'garden' if i % 2 else 'queen'} {i}.\t{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "task.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    pairs = [
        {"sentence_good": "Alice was tired.", "sentence_bad": "Alice were tired.", "phenomenon": "agreement"}
    ]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs[0]) + "\n")
    run = trained("demo_en")
    capsys.readouterr()
    arguments = (run / "model", tmp_path / "task.tsv", tmp_path / "pairs.jsonl", tmp_path / "out")
    run_example("finetune.py", *arguments, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "'values': [" in out.splitlines()[0]
    assert "{'agreement': {'accuracy': " in out.splitlines()[2]
    assert (tmp_path / "out" / "finetune-mine" / "model" / "config.json").is_file()


def test_the_artifact_example(tmp_path, monkeypatch, capsys):
    run_example("artifact.py", tmp_path, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "{'words': 2} ['seed', 'bed']" in out
    assert "words.txt was changed after it was written" in out


def test_every_example_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []
