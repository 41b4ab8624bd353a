"""The docs say what is there, and their commands run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import seedbed
from seedbed.cli import COMMANDS, main
from seedbed.config import load_config
from seedbed.errors import SeedbedError
from seedbed.optim import OPTIMIZERS
from seedbed.optim.base import usual_rate
from seedbed.optim.schedule import SCHEDULES
from seedbed.recipe import Recipe
from tiny_runs import TINY, write_toy_text

ROOT = Path(__file__).parents[1]

spec = importlib.util.spec_from_file_location("check_docs", ROOT / "tools" / "check_docs.py")
assert spec is not None
assert spec.loader is not None
check_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_docs)


def test_the_docs_are_in_order():
    # Figures that are still to be measured are the business of `make check`, not of every test run.
    assert [p for p in check_docs.problems() if "a figure is missing" not in p] == []


def test_the_page_of_optimizers_is_current():
    spec = importlib.util.spec_from_file_location("draw_schedules", ROOT / "tools" / "draw_schedules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "schedules.svg").read_text(encoding="utf-8") == module.draw()
    page = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    for name, kind in OPTIMIZERS.items():
        (line,) = [x for x in page.splitlines() if x.startswith(f"| `{name}` |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[2].split()[0]) == (kind.model_fields["learning_rate"].default or usual_rate()), (
            name
        )
    for name in SCHEDULES:
        assert f"| `{name}` |" in page, name


# --- the checks find things: the test above could not fail otherwise ----------------------------------------------


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "a.md"
    (tmp_path / "b.md").write_text("# One heading\n\n## `Code` and, more!\n\n```\n# not a heading\n```\n")
    text = (
        "[x](b.md) [x](b.md#one-heading) [x](b.md#code-and-more) [x](https://example.org) [x](#here)\n# Here\n"
        "[x](c.md) [x](b.md#not-a-heading) [x](#there)\n```\n[x](in-code.md)\n```\n"
    )
    page.write_text(text)
    assert list(check_docs.broken_links(page, text)) == [
        "link to c.md, which does not exist",
        "link to b.md#not-a-heading: no such heading",
        "link to #there: no such heading",
    ]


def test_a_page_outside_the_nav_is_found(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("in.md", "out.md"):
        (tmp_path / "docs" / name).write_text("")
    (tmp_path / "mkdocs.yml").write_text("nav:\n  - A: in.md\n  - Part:\n      - B: gone.md\n")
    assert list(check_docs.outside_nav(tmp_path)) == [
        "docs/out.md is not in the nav of mkdocs.yml",
        "mkdocs.yml names docs/gone.md, which does not exist",
    ]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("seedbed pretain r.yaml", "no command 'pretain'"),
        (".venv/bin/seedbed run r.yaml --no-such-thing", "--no-such-thing"),
        ("seedbed run r.yaml training.budget_minute=3", "training.budget_minute is no key"),
        ("seedbed fill-mask --top-k 3", "required"),
    ],
)
def test_a_wrong_command_is_found(line, part):
    (found,) = check_docs.wrong_commands(f"```\n{line}   # comment\n```\n")
    assert part in found
    assert not list(check_docs.wrong_commands("`seedbed` and `seedbed run` and `seedbed COMMAND --help`"))


@pytest.mark.parametrize(
    "key", ["training.seeds", "optim.schedule.warmup", "model.rope_thetas: 3", "corpus.inputs.x"]
)
def test_a_wrong_key_is_found(key):
    assert list(check_docs.wrong_keys(f"Set `{key}`."))


def test_right_keys_and_file_names_are_not_found():
    text = "`optim.schedule.warmup_fraction` `model.rope_theta=5` `tokenizer.json` `corpus.inputs` `objective.unit: word` `a.b`"
    assert not list(check_docs.wrong_keys(text))


def test_a_recipe_shown_must_be_one():
    assert list(check_docs.wrong_keys("```yaml\ntraining:\n  sead: 1\n```\n"))
    assert not list(check_docs.wrong_keys("```yaml\ntraining:\n  seed: 1\n```\n"))


def test_differing_readmes_are_found(tmp_path):
    (tmp_path / "README.md").write_text("# A\n## B\n```\none\n```\n<!-- demo -->\n```\nx\n```\n")
    (tmp_path / "README.zh.md").write_text("# 甲\n## 乙\n```\none\n```\n<!-- demo -->\n```\ny\n```\n")
    assert not list(check_docs.differing_readmes(tmp_path))
    (tmp_path / "README.zh.md").write_text("# 甲\n```\ntwo\n```\n")
    assert len(list(check_docs.differing_readmes(tmp_path))) == 2


# --- what is shown runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_examples_of_every_help_are_right(verb):
    module = __import__(COMMANDS[verb][0], fromlist=["run"])
    lines = [line.strip() for line in module.EXAMPLES.splitlines() if line.strip().startswith("seedbed ")]
    assert lines
    for line in lines:
        words = shlex.split(re.split(r" {3,}|\s>\s", line)[0])[1:]
        assert words[0] == verb
        assert list(check_docs.wrong_words(words)) == []


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_commands_of_the_readme_run(name, tmp_path, monkeypatch, capsys):
    """From a recipe of under fifteen lines to a filled mask, as it stands there; only sizes are made tiny."""
    blocks = check_docs.FENCE.findall((ROOT / name).read_text(encoding="utf-8"))
    (recipe,) = [code for _, language, code in blocks if language == "yaml"]
    lines = [line for _, _, code in blocks for line in code.splitlines() if line.startswith("seedbed ")]
    assert len(recipe.splitlines()) < 15
    assert {line.split()[1] for line in lines} >= {"run", "evaluate", "fill-mask"}
    monkeypatch.chdir(tmp_path)
    write_toy_text(tmp_path / "texts")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for line in lines:
        words = shlex.split(line)[1:]
        extra = {"run": TINY, "evaluate": ["--pll-tokens", "20"]}.get(words[0], [])
        assert main([*words, *extra]) == 0, capsys.readouterr().err
    assert (tmp_path / load_config(Recipe, tmp_path / "recipe.yaml").run / "report.html").is_file()


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_python_of_the_readme_is_a_tested_example(name):
    import textwrap

    example = (ROOT / "examples" / "open_in_transformers.py").read_text(encoding="utf-8")
    region = re.search(r"# --8<-- \[start:transformers\]\n(.*?) *# --8<-- \[end", example, re.S)
    assert region is not None
    blocks = check_docs.FENCE.findall((ROOT / name).read_text(encoding="utf-8"))
    assert [code for _, language, code in blocks if language == "python"] == [textwrap.dedent(region[1])]


def test_the_make_targets_the_readme_names_exist():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"):
        for target in re.findall(
            r"\bmake ([a-z]+)(?= |`|$)", (ROOT / name).read_text(encoding="utf-8"), re.M
        ):
            if target not in ("or", "and", "it"):
                assert re.search(rf"^{target}:", make, re.M), f"{name}: make {target}"


def test_the_error_tree_of_the_docs_is_the_codes():
    text = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")

    def family(kind: type) -> set[type]:
        return {kind, *(grandchild for child in kind.__subclasses__() for grandchild in family(child))}

    for kind in family(SeedbedError):
        row = re.search(rf"^\| (\d+) \|.*`{kind.__name__}`", text, re.M)
        assert row is not None, kind
        assert int(row[1]) == kind.exit_code
        assert re.search(rf"[- ]{kind.__name__}$|^{kind.__name__}$", text, re.M), kind


def test_the_ranks_of_the_docs_are_those_of_the_test():
    tree = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("test_architecture.py"))
    assert tree is not None
    assert tree.loader is not None
    module = importlib.util.module_from_spec(tree)
    tree.loader.exec_module(module)
    text = (
        (ROOT / "docs" / "architecture.md")
        .read_text(encoding="utf-8")
        .partition("## Ranks")[2]
        .partition("\n## ")[0]
    )
    rows = {
        int(number): set(re.findall(r"`(\w+)`", row.split("(")[0]))
        for number, row in re.findall(r"^\| (\d) \| (.*) \|$", text, re.M)
    }
    there = {p.stem for p in Path(seedbed.__file__).parent.iterdir() if p.suffix == ".py" or p.is_dir()}
    expected: dict[int, set[str]] = {}
    for name, rank in module.RANKS.items():
        if name in there and not name.startswith("_"):
            expected.setdefault(rank, set()).add(name)
    assert {rank: names for rank, names in rows.items() if rank in expected} == expected


def test_the_package_ships_what_the_docs_promise():
    """The schema and the bundled texts are package data; the version is one."""
    root = Path(seedbed.__file__).parent
    assert (root / "recipe.schema.json").is_file()
    assert (root / "py.typed").is_file()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{seedbed.__version__}"' in project


def test_the_site_builds_offline_and_fetches_nothing(tmp_path):
    """No font, script or style from any host."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("the docs builder is not installed (extra: check)")
    for folder in ("docs", "examples", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="((?:https?:)?//[^"]+)"', text)
        assert fetched == [], page.name
        assert "--8<--" not in text
