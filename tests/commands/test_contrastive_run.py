"""From a masked-LM run to sentence vectors: the start, the run, the export, and the command that judges it."""

from __future__ import annotations

import json

import pytest

from seedbed.cli import main
from seedbed.commands.console import Console
from seedbed.commands.pretraining import pretrain
from seedbed.commands.stages import prepare
from seedbed.config import validate
from seedbed.errors import ConfigError
from seedbed.recipe import Recipe
from tiny_runs import train, values, write_sentences

STARTED = {
    "data": {"row_length": 32},
    "training": {"budget_steps": 6, "batch_tokens": 512, "validation_rows": 16},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    data = values(write_sentences(folder / "text"), folder / "run", model={"hidden_dropout": 0.0})
    recipe, console = validate(Recipe, data, place="test"), Console(as_json=True)
    pretrain(recipe, prepare(recipe, console), console)
    return folder


def contrastive(base, run, model, **objective):
    return {
        "run": str(run),
        "corpus": {"inputs": [str(base / "text")], "validation_fraction": 0.2},
        "start": {"path": str(base / "run")},
        "objective": {"name": "contrastive", "group_rows": 8, **objective},
        "model": model,
        "runtime": {"threads": 1},
        **STARTED,
    }


def run_of(data):
    recipe, console = validate(Recipe, data, place="test"), Console(as_json=True)
    return train(prepare(recipe, console), data)


def test_an_encoder_of_ones_own_becomes_one_of_sentences(base, tmp_path, capsys):
    summary = run_of(contrastive(base, tmp_path / "run", {"hidden_dropout": 0.1}, masked_lm={}))
    assert summary["baselines"]["contrastive.chance"] == pytest.approx(2.0794, abs=1e-3)
    assert {"contrastive.alignment", "contrastive.uniformity", "masked_lm.loss"} <= set(summary["valid"])
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("the cat sings,the cat sings,5\na red house,the old dog,1\nthe river,a tree runs,0\n")
    capsys.readouterr()
    assert main(["similarity", str(tmp_path / "run"), str(pairs), "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"].values()
    assert set(file["scores"]) == {"cls", "mean"}
    assert file["scores"]["cls"]["spearman"] > 0


def test_pairs_of_a_file_need_no_dropout(base, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    words = ["cat", "dog", "house", "tree", "river"]
    lines = [
        f"the {a} and the {b}\tthe {b} and the {a}\tthe {a} sings" for a in words for b in words if a != b
    ]
    pairs.write_text("first\tsecond\tother\n" + "\n".join(lines * 2) + "\n")
    columns = {"anchor": "first", "positive": "second", "negative": "other"}
    files = {"train": [str(pairs)], "dev": [str(pairs)], **columns}
    summary = run_of(contrastive(base, tmp_path / "run", {}, pairs=files))
    assert summary["baselines"]["chance"] == pytest.approx(
        2.7726, abs=1e-3
    )  # ln of 8 pairs and 8 hard negatives
    with pytest.raises(ConfigError, match="without dropout"):
        run_of(contrastive(base, tmp_path / "other", {}))
