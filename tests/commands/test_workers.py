"""One recipe on one worker and on two: the same rows, the same result; proof, kills, locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import seedbed
from seedbed.cli import main
from seedbed.tensors import load_tensors
from seedbed.training.row_record import RowRecord
from tiny_runs import write_sentences

MIXTURE = {
    "name": "mixture",
    "entries": [
        {"objective": {"name": "masked_lm"}, "weight": 3.0},
        {"objective": {"name": "sentence_order", "masked_lm": None}, "weight": 1.0},
    ],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_sentences(tmp_path_factory.mktemp("corpus"))


def recipe_in(folder: Path, corpus: Path, **training) -> Path:
    objective = training.pop("objective", {"name": "masked_lm"})
    data = {
        "run": str(folder / "run"),
        "corpus": {"inputs": [str(corpus)], "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 300, "num_reserved": 4},
        "data": {"row_length": 16},
        "model": {
            "name": "modernbert",
            "num_layers": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "ffn_size": 64,
            "hidden_dropout": 0.1,
        },
        "objective": objective,
        "training": {
            "budget_steps": 12,
            "batch_tokens": 128,
            "micro_batch_rows": 2,
            "validation_steps": 4,
            "validation_rows": 8,
            "checkpoint_steps": 3,
            "record_rows": True,
            **training,
        },
        "runtime": {"threads": 1, "precision": "float32"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data, allow_unicode=True))
    return folder / "recipe.yaml"


def command(recipe: Path, *words: str, workers: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    return [
        sys.executable,
        *(launcher if workers > 1 else []),
        "-m",
        "seedbed",
        "pretrain",
        str(recipe),
        *words,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(seedbed.__file__).parent.parent), "OMP_NUM_THREADS": "1"}


def train(recipe: Path, *words: str, workers: int = 1) -> Path:
    done = subprocess.run(
        command(recipe, *words, workers=workers),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return recipe.parent / "run"


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in log(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(sorted((run / "pretrain" / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


@pytest.mark.parametrize("objective", [{"name": "masked_lm"}, MIXTURE], ids=["one", "mixture"])
def test_two_workers_read_the_same_rows_and_learn_the_same(corpus, tmp_path, objective):
    one = train(recipe_in(tmp_path / "one", corpus, objective=objective))
    two = train(recipe_in(tmp_path / "two", corpus, objective=objective), workers=2)
    assert RowRecord.read(one / "pretrain") == RowRecord.read(two / "pretrain")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    ours, theirs = weights(one), weights(two)
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in ours)
    files = sorted(path.name for path in (two / "pretrain").iterdir())
    assert [name for name in files if name.startswith("rows")] == ["rows-0-of-2.jsonl", "rows-1-of-2.jsonl"]


@pytest.mark.parametrize("objective", [{"name": "masked_lm"}, MIXTURE], ids=["one", "mixture"])
def test_exact_runs_do_not_depend_on_the_number_of_workers(corpus, tmp_path, objective):
    # 8 rows a step in micro-batches of 1; the mixture gives 6 and 2 of them, so a worker has 3 of one entry.
    training = {"objective": objective, "exact": True, "micro_batch_rows": 1}
    if objective is MIXTURE:
        training |= {"batch_tokens": 256, "objective": {**MIXTURE, "entries": equal_entries()}}
    one = train(recipe_in(tmp_path / "one", corpus, **training))
    two = train(recipe_in(tmp_path / "two", corpus, **training), workers=2)
    assert (one / "pretrain" / "metrics.jsonl").read_bytes() == (
        two / "pretrain" / "metrics.jsonl"
    ).read_bytes()
    ours, theirs = weights(one), weights(two)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def equal_entries():
    return [{**entry, "weight": 1.0} for entry in MIXTURE["entries"]]


@pytest.mark.parametrize(("compression", "tolerance"), [("fp16", 2e-3), ("powersgd", 5e-2)])
def test_compressed_gradients_are_sums_too(corpus, tmp_path, compression, tolerance):
    one = train(recipe_in(tmp_path / "one", corpus))
    two = train(recipe_in(tmp_path / "two", corpus, gradient_compression=compression), workers=2)
    assert RowRecord.read(one / "pretrain") == RowRecord.read(two / "pretrain")
    assert losses(two) != losses(one)
    assert losses(two) == pytest.approx(losses(one), rel=tolerance)
    norms = [[line["gradient_norm"] for line in log(run) if line["kind"] == "step"] for run in (one, two)]
    assert norms[1][0] == pytest.approx(norms[0][0], rel=2e-3), "a mean over workers would be half of it"


def test_going_on_with_another_number_of_workers(corpus, tmp_path):
    whole = train(recipe_in(tmp_path / "whole", corpus))
    recipe = recipe_in(tmp_path / "cut", corpus)
    train(recipe, "--stop-after", "5")
    train(recipe, "--stop-after", "8", workers=2)
    cut = train(recipe)
    assert RowRecord.read(whole / "pretrain") == RowRecord.read(cut / "pretrain")
    assert [line["window"] for line in log(cut)] == [line["window"] for line in log(whole)]
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)


def test_shared_weights_go_on_whole_and_the_other_way_round(corpus, tmp_path):
    """Five steps on two workers that share weights, three on one, four on two that share layers: one run, its log, its model."""
    training = {"objective": {"name": "causal_lm"}, "ema_decay": 0.5}
    llama = ["model.name=llama", "model.num_kv_heads=2"]
    whole = recipe_in(tmp_path / "whole", corpus, **training)
    assert main(["pretrain", str(whole), *llama, "--json"]) == 0
    recipe = recipe_in(tmp_path / "cut", corpus, **training)
    train(recipe, *llama, "--stop-after", "5", "runtime.sharding=full_shard", workers=2)
    assert main(["pretrain", str(recipe), *llama, "--stop-after", "8", "--json"]) == 0
    train(recipe, *llama, "runtime.tensor_parallel=2", workers=2)
    one, cut = whole.parent / "run", recipe.parent / "run"
    assert RowRecord.read(one / "pretrain") == RowRecord.read(cut / "pretrain")
    assert [line["window"] for line in log(cut)] == [line["window"] for line in log(one)]
    assert losses(cut) == pytest.approx(losses(one), rel=1e-5)
    ours, theirs = (load_tensors(next((run / "model").glob("*.safetensors"))) for run in (one, cut))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in ours)
    samples = [json.loads((run / "pretrain" / "samples.json").read_text()) for run in (one, cut)]
    assert samples[0]["before"] == samples[1]["before"]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, cut)]
    assert summaries[0]["parameters"] == summaries[1]["parameters"]


def test_stop_after_says_how_to_go_on(corpus, tmp_path, capsys):
    recipe = recipe_in(tmp_path, corpus)
    assert main(["pretrain", str(recipe), "--stop-after", "4", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"stopped_after": 4}
    assert "to go on: seedbed pretrain" in captured.err
    assert log(recipe.parent / "run")[-1]["window"] == 4


def test_prove_on_a_recipe(corpus, tmp_path, capsys):
    recipe = recipe_in(tmp_path, corpus)
    assert main(["prove", str(recipe), "--steps", "6", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [arm["arm"] for arm in result["arms"]] == ["stopped", "killed", "workers-2", "switched"]
    assert all(arm["holds"] and arm["rows_equal"] for arm in result["arms"])
    assert [arm["weights_equal"] for arm in result["arms"][:2]] == [True, True]
    assert json.loads((tmp_path / "run" / "prove" / "prove.json").read_text()) == result
    assert not (tmp_path / "run" / "pretrain").exists(), "the run itself is not trained"


def test_prove_catches_a_run_that_does_not_repeat(corpus, tmp_path, monkeypatch, capsys):
    """A resume that draws other dropout than the run it goes on with."""
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'pretrain' in sys.argv and '--stop-after' in sys.argv or os.environ.get('BROKEN_ALWAYS'):\n"
        "    import seedbed.training.loop as loop\n"
        "    import seedbed.commands.assembly as assembly\n"
        "    plain = assembly.fold\n"
        "    assembly.fold = lambda key, number: plain(key, number + (number > 3))\n"
    )
    paths = [str(broken), str(Path(seedbed.__file__).parent.parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    recipe = recipe_in(tmp_path, corpus)
    assert main(["prove", str(recipe), "--steps", "6", "--workers", "1"]) == 8
    said = capsys.readouterr().err
    assert "stopped" in said
    assert "metrics.jsonl differs" in said


# --- faults; workers that are killed, stopped or wrong are in tests/torture/worker.py ---------------------------------


def start(recipe: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(recipe, *words, workers=2),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def workers_of(process: subprocess.Popen, recipe: Path) -> list[int]:
    """Return the process ids of the workers torchrun started that still run, in the order of their ranks."""
    import psutil

    ranks = []
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []
    for child in children:
        try:
            if "seedbed" in child.cmdline() and str(recipe) in child.cmdline():
                ranks.append((child.environ()["RANK"], child.pid))
        except (psutil.Error, KeyError):  # it has just ended, or has just begun
            continue
    return [pid for _, pid in sorted(ranks)]


def wait_for_step(recipe: Path, process: subprocess.Popen, step: int) -> None:
    path = recipe.parent / "run" / "pretrain" / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if path.exists() and f'"window": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(
        f"step {step} was not reached: {process.stdout.read()[-2000:] if process.poll() else ''}"
    )


@pytest.mark.fault
def test_a_signal_to_one_worker_stops_all_after_the_same_step(corpus, tmp_path):
    recipe = recipe_in(tmp_path, corpus, budget_steps=2000)
    process = start(recipe)
    wait_for_step(recipe, process, 3)
    os.kill(workers_of(process, recipe)[1], signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert "stopped by SIGTERM after step" in said
    window = log(recipe.parent / "run")[-1]["window"]
    newest = sorted((recipe.parent / "run" / "pretrain" / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{window:08d}"


@pytest.mark.fault
def test_a_run_in_use_is_refused_by_all_workers(corpus, tmp_path):
    from seedbed.lock import owned

    recipe = recipe_in(tmp_path, corpus)
    with owned(tmp_path / "run"):
        process = start(recipe)
        said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert f"in use by process {os.getpid()}" in said
    assert not (tmp_path / "run" / "pretrain").exists()


SPOIL = """
import os, sys
if 'pretrain' in sys.argv and os.environ.get('RANK') == '1':
    import seedbed.commands.pretraining as pretraining
    plain = pretraining.run_window
    def run_window(setting, state, *rest, **options):
        rolled_back = state.hooks.get('rollback', {}).get('rollbacks')
        if state.window + 1 in {2, 6, 7, 8} and not rolled_back:
            weight = next(state.learner.parameters())
            handle = weight.register_hook(lambda gradient: gradient * float('nan'))
            try:
                return plain(setting, state, *rest, **options)
            finally:
                handle.remove()
        return plain(setting, state, *rest, **options)
    pretraining.run_window = run_window
"""


def train_with(code: str, recipe: Path) -> subprocess.CompletedProcess[str]:
    """Train on two workers that run some code first."""
    site = recipe.parent / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(code)
    paths = os.pathsep.join([str(site), environment()["PYTHONPATH"]])
    return subprocess.run(
        command(recipe, workers=2),
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": paths},
        check=False,
    )


@pytest.mark.parametrize("exact", [False, True])
def test_one_workers_bad_gradient_is_skipped_and_rolled_back_by_all(corpus, tmp_path, monkeypatch, exact):
    done = train_with(SPOIL, recipe_in(tmp_path, corpus, exact=exact))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = log(tmp_path / "run")
    assert [line["window"] for line in lines if line.get("is_skipped")] == [2, 6, 7, 8]
    (back,) = [line for line in lines if line["kind"] == "rollback"]
    assert (back["from"], back["to"]) == (8, 4)
    assert all(len(rows["masked_lm"]) == 8 for rows in back["rows"].values()), "rows of all workers"
    assert lines[-1]["window"] == 12
