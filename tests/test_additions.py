"""Adding an objective or an architecture takes one file and one line: done here, to a copy of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import seedbed
from tiny_runs import write_sentences

ROOT = Path(__file__).parents[1]
PACKAGE = Path(seedbed.__file__).parent
ADDITIONS = ROOT / "examples" / "additions"

CASES = {
    "objective": (
        "objectives",
        "next_but_one",
        "from seedbed.objectives.next_but_one import NextButOneConfig\n",
        ("OBJECTIVES: dict[str, type[ObjectiveConfig]] = {\n", '    "next_but_one": NextButOneConfig,\n'),
        ["objective.name=next_but_one"],
    ),
    "architecture": (
        "models",
        "plain",
        "from seedbed.models.plain import PlainConfig\n",
        ("MODELS: dict[str, type[FamilyConfig]] = {\n", '    "plain": PlainConfig,\n'),
        ["objective.name=causal_lm", "model.name=plain"],
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_one_file_and_one_line_make_it_train_from_a_recipe(kind, tmp_path):
    folder, module, import_line, (table, line), choice = CASES[kind]
    copied = tmp_path / "src" / "seedbed"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ADDITIONS / f"{module}.py", copied / folder / f"{module}.py")
    init = copied / folder / "__init__.py"
    text = init.read_text(encoding="utf-8")
    assert text.count(table) == 1
    first_import = text.index("from seedbed.")
    text = text[:first_import] + import_line + text[first_import:]
    init.write_text(text.replace(table, table + line), encoding="utf-8")

    corpus = write_sentences(tmp_path / "corpus")
    overrides = [
        f"run={tmp_path / 'run'}",
        f"corpus.inputs=[{corpus}]",
        "corpus.validation_fraction=0.2",
        "tokenizer.vocab_size=300",
        "data.row_length=32",
        "model.preset=tiny",
        "training.budget_steps=3",
        "training.batch_tokens=256",
        "runtime.threads=1",
        *choice,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "seedbed"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}\n", encoding="utf-8")
    run = subprocess.run(
        [*command, "run", str(recipe), *overrides],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "validation loss" in run.stdout
    assert (tmp_path / "run" / "model" / "training.json").is_file()
    listed = subprocess.run(
        [*command, "strategies"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert module in listed
