"""Labelled texts beside language modelling in one run, from a recipe to a model, the same bits each time."""

from __future__ import annotations

import json
import random

import pytest

from seedbed.cli import main
from seedbed.commands import pretraining
from tiny_runs import TINY, write_toy_text


def write_tasks(folder):
    chance = random.Random(0)
    words = ["alice", "rabbit", "queen", "garden", "tired", "little"]
    moods = ["text\tlabel"]
    answers = ["text\tlabel"]
    for _ in range(40):
        chosen = chance.choices(words, k=4)
        moods.append(f"{' '.join(chosen)}\t{'q' if 'queen' in chosen else 'n'}")
        answers.append(f"{' '.join(chosen)}\t{chosen[0]}")
    for name, lines in (("moods.tsv", moods), ("answers.tsv", answers)):
        (folder / name).write_text("\n".join(lines) + "\n")


def recipe(tmp_path, run, kind):
    """A mixture of language modelling with a task, for an encoder, a decoder and an encoder-decoder."""
    moods, answers = (
        {"train": [str(tmp_path / name)], "dev": [str(tmp_path / name)]}
        for name in ("moods.tsv", "answers.tsv")
    )
    task = {"name": "classification", "task": moods}
    answer = {"name": "supervised_generation", "task": {**answers, "kind": "generation"}}
    entries = {
        "modernbert": [{"name": "masked_lm"}, task],
        "llama": [{"name": "causal_lm"}, task, answer],
        "t5": [answer],
    }[kind]
    section = {
        "name": "mixture",
        "entries": [{"objective": e, "weight": 1 + i} for i, e in enumerate(entries)],
    }
    return [f"run={run}", f"model.name={kind}", f"objective={json.dumps(section)}"]


@pytest.mark.parametrize("kind", ["modernbert", "llama", "t5"])
def test_a_mixture_with_tasks_trains_and_exports(tmp_path, kind, capsys):
    write_tasks(tmp_path)
    text = write_toy_text(tmp_path / "text")
    empty = tmp_path / "recipe.yaml"
    empty.write_text("training: {}\n")
    common = [f'corpus.inputs=["{text}"]', *TINY, "training.budget_steps=6", "training.keep_best=false"]
    words = ["pretrain", str(empty), *common, "--json"]
    assert main([*words, *recipe(tmp_path, tmp_path / "run", kind)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["valid_loss"] > 0
    if kind == "modernbert":
        assert summary["valid"]["classification.loss"] > 0
        assert 0 <= summary["valid"]["classification.accuracy"] <= 1
        assert summary["baselines"]["classification.chance"] > 0
    if kind == "llama":
        assert summary["valid"]["supervised_generation.loss"] > 0
    assert main([*words, *recipe(tmp_path, tmp_path / "again", kind)]) == 0
    assert pretraining.run_digest(tmp_path / "run") == pretraining.run_digest(tmp_path / "again")
