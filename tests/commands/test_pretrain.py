"""Runs as a user makes them: the same twice, stopped anywhere, killed at any moment, refused when they do not fit."""

from __future__ import annotations

import json
import os
import random
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
from seedbed.commands import pretraining
from seedbed.commands.console import Console
from seedbed.commands.stages import prepare
from seedbed.config import validate
from seedbed.errors import ConfigError, IncompatibleError, IntegrityError, NumericError
from seedbed.models.huggingface import write_huggingface
from seedbed.recipe import Recipe
from seedbed.tensors import load_tensors
from seedbed.training import loop
from tiny_runs import write_sentences as write_corpus

STEPS = 12


def values(corpus: Path, run: Path, **sections):
    data = {
        "run": str(run),
        "corpus": {"inputs": [str(corpus)], "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 300, "num_reserved": 4},
        "data": {"row_length": 16},
        "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 64, "hidden_dropout": 0.1},
        "training": {
            "budget_steps": STEPS,
            "batch_tokens": 96,
            "micro_batch_rows": 3,
            "validation_steps": 4,
            "validation_rows": 8,
        },
        "runtime": {"threads": 1},
    }
    for section, changes in sections.items():
        data[section] = {**data.get(section, {}), **changes} if isinstance(changes, dict) else changes
    return data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def train(data, *, stop_after=None, monkeypatch=None):
    recipe = validate(Recipe, data, place="test")
    console = Console(as_json=True)
    if stop_after is not None:
        original = loop.fit

        def stopping(state, run_window, **options):
            options["is_interrupted"] = lambda: state.window >= stop_after
            return original(state, run_window, **options)

        monkeypatch.setattr(pretraining, "fit", stopping)
        monkeypatch.setattr(pretraining, "_signals", lambda: _received())
    try:
        return pretraining.pretrain(recipe, prepare(recipe, console), console)
    finally:
        if stop_after is not None:
            monkeypatch.undo()


class _received(list):
    """Stand in for the signal handler: a signal arrived."""

    def __init__(self):
        super().__init__([signal.SIGTERM])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def outcome(run: Path):
    """Everything a run decides: stage digests (weights included) and the loss column."""
    return pretraining.run_digest(run)


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("reference") / "run"
    summary = train(values(corpus, run))
    return run, summary


def test_the_same_recipe_twice_is_the_same_bit_for_bit(corpus, reference, tmp_path):
    train(values(corpus, tmp_path / "again"))
    assert outcome(tmp_path / "again") == outcome(reference[0])


def test_the_resolved_recipe_is_the_same_bit_for_bit(corpus, reference, tmp_path):
    resolved = json.loads((reference[0] / "pretrain" / "resolved.json").read_text())["resolved"]
    train({**values(corpus, tmp_path / "run"), **resolved})
    assert outcome(tmp_path / "run") == outcome(reference[0])


@pytest.mark.parametrize("stops", [[1], [4], [5], [11], [2, 3, 8]])
def test_stopping_and_resuming_changes_nothing(corpus, reference, tmp_path, monkeypatch, stops):
    data = values(corpus, tmp_path / "run")
    for stop in stops:
        with pytest.raises(pretraining.Interrupted) as stopped:
            train(data, stop_after=stop, monkeypatch=monkeypatch)
        assert stopped.value.window == stop
    train(data)
    assert outcome(tmp_path / "run") == outcome(reference[0])


MIXTURE = {
    "name": "mixture",
    "entries": [
        {"objective": {"name": "masked_lm"}, "weight": 2.0, "final_weight": 1.0},
        {"objective": {"name": "masked_lm", "unit": "word", "mask_rate": 0.3}, "label": "words"},
    ],
}


def test_a_mixture_trains_scores_each_entry_and_resumes_exactly(corpus, tmp_path, monkeypatch):
    summary = train(values(corpus, tmp_path / "whole", objective=MIXTURE))
    assert summary["objective"] == "mixture"
    shares = {"masked_lm": 0.5, "words": 0.5}  # at the end
    assert summary["valid_loss"] == pytest.approx(
        sum(share * summary["valid"][f"{label}.loss"] for label, share in shares.items())
    )
    assert summary["baselines"]["unigram"] < summary["baselines"]["uniform"]
    assert {"masked_lm.unigram", "words.unigram"} <= summary["baselines"].keys()
    lines = (tmp_path / "whole" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert {"masked_lm.masked_lm", "words.masked_lm"} <= json.loads(lines[0])["losses"].keys()
    data = values(corpus, tmp_path / "cut", objective=MIXTURE)
    with pytest.raises(pretraining.Interrupted):
        train(data, stop_after=5, monkeypatch=monkeypatch)
    train(data)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("objective", ["masked_lm", "span_corruption"])
def test_activation_checkpointing_changes_no_bit(corpus, tmp_path, objective):
    runs = []
    for again in (False, True):
        family = {"name": "t5" if objective == "span_corruption" else "modernbert"}
        data = values(corpus, tmp_path / str(again), objective={"name": objective}, model=family)
        data["tokenizer"]["num_reserved"] = 32
        data["runtime"]["activation_checkpointing"] = again
        train(data)
        runs.append((tmp_path / str(again) / "pretrain" / "metrics.jsonl").read_text())
    assert runs[0] == runs[1]


def test_another_seed_is_another_run(corpus, reference, tmp_path):
    train(values(corpus, tmp_path / "run", training={**values(corpus, tmp_path)["training"], "seed": 1}))
    assert outcome(tmp_path / "run") != outcome(reference[0])


def test_a_finished_run_is_skipped(corpus, reference, capsys):
    before = {p: p.stat().st_mtime_ns for p in reference[0].rglob("*") if p.is_file() and p.name != ".lock"}
    assert train(values(corpus, reference[0])) == json.loads((reference[0] / "summary.json").read_text())
    assert before == {
        p: p.stat().st_mtime_ns for p in reference[0].rglob("*") if p.is_file() and p.name != ".lock"
    }


def test_summary_holds_what_is_promised(reference):
    summary = json.loads((reference[0] / "summary.json").read_text())
    assert summary["valid_loss"] > 0
    assert summary["baselines"]["unigram"] < summary["baselines"]["uniform"]
    assert summary["train_seconds"] > 0
    assert summary["tokens"] == STEPS * 96
    assert Path(summary["model"]).is_dir()


def test_another_recipe_in_the_same_folder_is_refused(corpus, tmp_path, monkeypatch):
    data = values(corpus, tmp_path / "run")
    with pytest.raises(pretraining.Interrupted):
        train(data, stop_after=2, monkeypatch=monkeypatch)
    data["optim"] = {"learning_rate": 1e-4}
    with pytest.raises(IncompatibleError, match=r"optim.learning_rate was null, is 0.0001"):
        train(data)


def test_another_tokenizer_for_a_checkpoint_is_refused(corpus, tmp_path, monkeypatch):
    data = values(corpus, tmp_path / "run")
    with pytest.raises(pretraining.Interrupted):
        train(data, stop_after=2, monkeypatch=monkeypatch)
    data["tokenizer"] = {"vocab_size": 100, "num_reserved": 4}
    recipe = validate(Recipe, data, place="test")
    prepared = prepare(
        recipe, Console(as_json=True), replace=True
    )  # the user replaces the stages, not the run
    with pytest.raises(IncompatibleError) as refused:
        pretraining.pretrain(recipe, prepared, Console(as_json=True))
    assert refused.value.exit_code == 9
    assert refused.value.hint


def test_damaged_checkpoints_fall_back_to_the_one_before(corpus, reference, tmp_path, monkeypatch, caplog):
    data = values(corpus, tmp_path / "run")
    for stop in (3, 6):
        with pytest.raises(pretraining.Interrupted):
            train(data, stop_after=stop, monkeypatch=monkeypatch)
    weights = tmp_path / "run" / "pretrain" / "checkpoints" / "step-00000006" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    train(data)
    assert "step-00000006" in caplog.text
    assert outcome(tmp_path / "run") == outcome(reference[0])


def test_all_checkpoints_damaged_is_an_error(corpus, tmp_path, monkeypatch):
    data = values(corpus, tmp_path / "run")
    with pytest.raises(pretraining.Interrupted):
        train(data, stop_after=3, monkeypatch=monkeypatch)
    (tmp_path / "run" / "pretrain" / "checkpoints" / "step-00000003" / "optimizer.safetensors").write_bytes(
        b""
    )
    with pytest.raises(IntegrityError, match="every checkpoint"):
        train(data)


def test_retention_keeps_two_full_checkpoints_and_some_weights(corpus, tmp_path):
    data = values(corpus, tmp_path / "run")
    data["training"] |= {"checkpoint_steps": 2, "keep_weights": 2}
    train(data)
    names = sorted(p.name for p in (tmp_path / "run" / "pretrain" / "checkpoints").iterdir())
    full = [n for n in names if n.startswith("step")]
    assert full == ["step-00000010", "step-00000012"]
    assert [n for n in names if n.startswith("weights")] == ["weights-00000006", "weights-00000008"]
    assert len([n for n in names if n.startswith("best")]) == 1


def test_a_resume_on_another_machine_warns(corpus, tmp_path, monkeypatch, caplog):
    data = values(corpus, tmp_path / "run")
    with pytest.raises(pretraining.Interrupted):
        train(data, stop_after=3, monkeypatch=monkeypatch)
    data["runtime"] = {"threads": 2}
    train(data)
    assert "bits may differ: threads was 1, is 2" in caplog.text


def test_early_stopping_ends_the_run(corpus, tmp_path):
    data = values(corpus, tmp_path / "run", optim={"name": "sgd", "learning_rate": 1e-9, "momentum": 0.0})
    data["training"] |= {"budget_steps": 40, "early_stopping_patience": 2, "validation_steps": 2}
    data["optim"]["learning_rate"] = 50.0  # gets worse at once
    summary = train(data)
    assert summary["stopped_early"]
    assert summary["steps"] < 40


def test_tensorboard_gets_steps_and_validations(corpus, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = values(corpus, tmp_path / "run")
    data["training"] |= {"tensorboard": True}
    train(data)
    events = EventAccumulator(str(tmp_path / "run" / "pretrain" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert [e.step for e in events.Scalars("validation/loss")] == [4, 8, 12]
    lines = [
        json.loads(x) for x in (tmp_path / "run" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [x["loss"] for x in lines if x["kind"] == "step"]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)


def test_a_wrong_objective_for_the_model_is_refused_before_training(corpus, tmp_path):
    data = values(corpus, tmp_path / "run", objective={"name": "causal_lm"})
    data["model"]["name"] = "bert"
    with pytest.raises(IncompatibleError, match="trains a decoder"):
        train(data)
    assert not (tmp_path / "run" / "pretrain").exists()


def test_two_budgets_are_refused():
    with pytest.raises(ConfigError, match="give one budget"):
        validate(Recipe, {"training": {"budget_steps": 5, "budget_tokens": 10}}, place="test")


def hopeless(corpus, run, **training):
    """A rate at which every step but the first few has no finite gradient."""
    optim = {"name": "sgd", "learning_rate": 1e30, "max_grad_norm": 0.0, "schedule": {"min_warmup_steps": 0}}
    return values(corpus, run, optim=optim, training=training)


def test_three_non_finite_gradients_stop_the_run(corpus, tmp_path):
    with pytest.raises(NumericError, match="3 steps in a row") as stopped:
        train(hopeless(corpus, tmp_path / "run", max_rollbacks=0))
    assert stopped.value.exit_code == 5
    assert not list((tmp_path / "run" / "pretrain" / "checkpoints").glob("anchor-*"))


def test_rollbacks_end_where_nothing_helps(corpus, tmp_path):
    data = hopeless(corpus, tmp_path / "run", budget_steps=40)
    with pytest.raises(NumericError, match="after 3 rollbacks") as stopped:
        train(data)
    assert stopped.value.exit_code == 5
    lines = [line for line in log_of(tmp_path / "run") if line["kind"] == "rollback"]
    assert len(lines) == 3


def log_of(run):
    return [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def bad_windows(monkeypatch):
    """Spoil the gradient of some windows, whoever asks, until the run has rolled back once."""
    plain = pretraining.run_window

    def spoil(windows, always=False):
        def run_window(setting, state, *rest, **options):
            rolled_back = state.hooks.get("rollback", {}).get("rollbacks")
            if state.window + 1 in windows and (always or not rolled_back):
                weight = next(state.learner.parameters())
                handle = weight.register_hook(lambda gradient: gradient * float("nan"))
                try:
                    return plain(setting, state, *rest, **options)
                finally:
                    handle.remove()
            return plain(setting, state, *rest, **options)

        monkeypatch.setattr(pretraining, "run_window", run_window)

    return spoil


def test_one_or_two_bad_steps_are_passed_over(corpus, reference, tmp_path, bad_windows):
    bad_windows({5, 6, 8})
    train(values(corpus, tmp_path / "run"))
    lines = log_of(tmp_path / "run")
    assert [line["window"] for line in lines if line.get("is_skipped")] == [5, 6, 8]
    assert not [line for line in lines if line["kind"] == "rollback"]


@pytest.mark.parametrize("stops", [[], [6], [7], [8], [9], [6, 7, 8]])
def test_three_bad_steps_go_back_and_on(corpus, tmp_path, monkeypatch, bad_windows, stops):
    """Windows 6 to 8 are bad; the newest validation before is that of window 4."""
    bad_windows({6, 7, 8})
    data = values(corpus, tmp_path / "run")
    for stop in stops:
        with pytest.raises(pretraining.Interrupted):
            train_keeping(data, stop)
    summary = train_keeping(data, None)
    (line,) = [line for line in log_of(tmp_path / "run") if line["kind"] == "rollback"]
    assert (line["from"], line["to"], line["first_bad"]) == (8, 4, 6)
    assert sorted(line["rows"]) == ["6", "7", "8"]
    assert all(len(rows["masked_lm"]) == 6 for rows in line["rows"].values())
    assert summary["steps"] == STEPS - 4, "four steps of four windows were given up"
    steps = [line["window"] for line in log_of(tmp_path / "run") if line["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1)), "no row was read twice, none was left out of the log"
    digest = outcome(tmp_path / "run")
    bad_windows({6, 7, 8})
    train_keeping(values(corpus, tmp_path / "again"), None)
    assert outcome(tmp_path / "again") == digest


def train_keeping(data, stop):
    """Train to a step, with what was put in place of `run_window`."""
    recipe, console = validate(Recipe, data, place="test"), Console(as_json=True)
    return pretraining.pretrain(recipe, prepare(recipe, console), console, stop_after=stop or 0)


def test_what_was_skipped_is_the_weights_of_before(corpus, tmp_path, bad_windows):
    """After the rollback the run is one that has the anchor's weights at window 8."""
    bad_windows({6, 7, 8})
    data = values(corpus, tmp_path / "run")
    with pytest.raises(pretraining.Interrupted):
        train_keeping(data, 8)
    checkpoints = tmp_path / "run" / "pretrain" / "checkpoints"
    back = load_tensors(checkpoints / "step-00000008" / "model.safetensors")
    anchor = load_tensors(checkpoints / "anchor-00000004" / "model.safetensors")
    assert all(torch.equal(back[name], anchor[name]) for name in anchor)


def test_causal_runs_resume_too(corpus, tmp_path, monkeypatch):
    whole = values(corpus, tmp_path / "whole", objective={"name": "causal_lm"})
    train(whole)
    parts = values(corpus, tmp_path / "parts", objective={"name": "causal_lm"})
    with pytest.raises(pretraining.Interrupted):
        train(parts, stop_after=7, monkeypatch=monkeypatch)
    train(parts)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("family", ["native_encoder", "native_decoder"])
def test_native_models_resume_and_open_from_their_own_folder(corpus, tmp_path, monkeypatch, family):
    objective = {"name": "masked_lm" if family == "native_encoder" else "causal_lm"}
    model = {"name": family, "many_passes": True}
    whole = values(corpus, tmp_path / "whole", objective=objective, model=model)
    summary = train(whole)
    assert summary["model_form"] == "seedbed"
    parts = values(corpus, tmp_path / "parts", objective=objective, model=model)
    with pytest.raises(pretraining.Interrupted):
        train(parts, stop_after=7, monkeypatch=monkeypatch)
    train(parts)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")

    assert {f.name for f in (tmp_path / "whole" / "model").iterdir()} >= {
        "transformer.json",
        "tokenizer.json",
    }
    assert not (tmp_path / "whole" / "model" / "config.json").exists()
    loaded = seedbed.load(tmp_path / "whole")
    if family == "native_encoder":
        assert len(loaded.fill_mask("the [MASK] sings", top_k=3)[0]) == 3
    else:
        assert loaded.generate("the cat", max_new_tokens=5).startswith("the cat")
    assert main(["evaluate", str(tmp_path / "whole"), "--json"]) == 0
    with pytest.raises(IncompatibleError, match="no Hugging Face form") as refused:
        write_huggingface(loaded.model, tmp_path / "export")
    assert "modernbert" in refused.value.hint or "llama" in refused.value.hint


def test_the_form_of_the_model_folder_is_settled_before_training(corpus, tmp_path):
    model = {"name": "native_encoder"}
    data = values(corpus, tmp_path / "a", model=model, training={"model_form": "huggingface"})
    with pytest.raises(IncompatibleError, match="no Hugging Face form"):
        train(data)
    data = values(corpus, tmp_path / "b", model={"query_stream": True})
    with pytest.raises(IncompatibleError, match="query_stream") as refused:
        train(data)
    assert "model_form=seedbed" in refused.value.hint
    assert not (tmp_path / "a" / "pretrain").exists()
    assert not (tmp_path / "b" / "pretrain").exists()
    short = {"model_form": "seedbed", "budget_steps": 2}
    train(values(corpus, tmp_path / "c", training=short))
    assert seedbed.load(tmp_path / "c").model.config.family == "modernbert"


AVERAGED = {"ema_decay": 0.7, "ema_start_fraction": 0.3}
PLATEAU = {"schedule": {"name": "reduce_on_plateau", "patience": 0, "min_improvement": 0.9}}


@pytest.mark.parametrize(
    ("optim", "training"),
    [
        ({"name": "muon", "decay_schedule": "linear"}, {}),
        ({"name": "schedule_free_adamw"}, {}),
        ({"name": "adamw", "is_cautious": True, **PLATEAU}, AVERAGED),
        ({"name": "adafactor"}, {"average_checkpoints": 2}),
        *(
            pytest.param({"name": name}, {}, marks=pytest.mark.slow)
            for name in ("adam", "sgd", "lamb", "lion", "normuon", "schedule_free_sgd")
        ),
    ],
    ids=lambda value: value.get("name"),
)
def test_every_optimizer_schedule_and_average_resumes_exactly(corpus, tmp_path, monkeypatch, optim, training):
    """Stopped between validations (window 5 of 4, 8, 12) and right after one."""
    whole, parts = (values(corpus, tmp_path / name, optim=optim) for name in ("whole", "parts"))
    for data in (whole, parts):
        data["training"] |= training
    summary = train(whole)
    for stop in (5, 8):
        with pytest.raises(pretraining.Interrupted):
            train(parts, stop_after=stop, monkeypatch=monkeypatch)
    assert train(parts)["valid_loss"] == summary["valid_loss"]
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    lines = [json.loads(x) for x in (tmp_path / "whole/pretrain/metrics.jsonl").read_text().splitlines()]
    if "average_checkpoints" not in training:  # what was validated is what was exported
        assert min(x["loss"] for x in lines if x["kind"] == "validation") == summary["valid_loss"]
    rates = [x["learning_rate"] for x in lines if x["kind"] == "step"]
    if "schedule" in optim:  # two validations that were not better by nine tenths
        assert [rates[8], rates[11]] == pytest.approx([rates[5] / 2, rates[5] / 2])
    if training == AVERAGED:
        newest = sorted((tmp_path / "whole/pretrain/checkpoints").glob("step-*"))[-1]
        saved = load_tensors(newest / "average.safetensors")
        exported = load_tensors(tmp_path / "whole/model/model.safetensors")
        assert torch.equal(
            saved["trunk.embedding.token.weight"], exported["model.embeddings.tok_embeddings.weight"]
        )


# --- through the command line, in processes of their own ----------------------------------------------------------------


def command(recipe: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "seedbed", "pretrain", str(recipe), "--json", *words]


@pytest.fixture
def recipe_file(corpus, tmp_path):
    path = tmp_path / "recipe.yaml"
    data = values(corpus, tmp_path / "run")
    data["training"] |= {"budget_steps": 400, "checkpoint_steps": 5, "validation_steps": 50}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def wait_for(path: Path, text: str, process: subprocess.Popen, *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(
        f"{path} never held {text!r}; exit {process.poll()}: {process.stderr.read().decode()[-2000:] if process.poll() is not None else ''}"
    )


@pytest.mark.fault
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(recipe_file, tmp_path, number, code):
    process = subprocess.Popen(command(recipe_file), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(tmp_path / "run" / "pretrain" / "metrics.jsonl", '"window": 20,', process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"to go on: seedbed pretrain {recipe_file}" in error.decode()
    lines = (tmp_path / "run" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])["window"]
    assert (tmp_path / "run" / "pretrain" / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()


@pytest.mark.fault
def test_two_runs_in_one_folder(recipe_file, tmp_path):
    first = subprocess.Popen(command(recipe_file), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(tmp_path / "run" / "pretrain" / "metrics.jsonl", '"window": 2,', first)
    second = subprocess.run(command(recipe_file), capture_output=True, check=False)
    first.kill()
    first.wait()
    assert second.returncode == 7
    assert f"process {first.pid}" in second.stderr.decode()


@pytest.mark.fault
def test_kill_at_30_random_moments_loses_nothing(corpus, tmp_path):
    """The kills fall anywhere in a run's life: imports, stages, planning, steps, validation, saving, export, resuming."""
    data = values(corpus, tmp_path / "whole")
    data["training"] |= {"budget_steps": 300, "checkpoint_steps": 7, "validation_steps": 40}
    whole, parts = tmp_path / "whole.yaml", tmp_path / "parts.yaml"
    whole.write_text(yaml.safe_dump(data))
    parts.write_text(yaml.safe_dump({**data, "run": str(tmp_path / "parts")}))
    began = time.monotonic()
    subprocess.run(command(whole), check=True, capture_output=True)
    duration = time.monotonic() - began
    chooser = random.Random(int(os.environ.get("SEEDBED_KILL_SEED", "1")))
    kills = 0
    for _ in range(30):
        process = subprocess.Popen(command(parts), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # Past the start-up most of the time, so that there is something to lose.
            process.wait(timeout=duration * chooser.uniform(0.1, 0.75))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.wait()
    subprocess.run(command(parts), check=True, capture_output=True)
    assert kills >= 5
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    leftovers = list((tmp_path / "parts").rglob("*.tmp"))
    assert len(leftovers) <= kills


def test_exit_codes_and_hints_through_the_command_line(corpus, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"run": str(tmp_path / "r"), "corpus": {"inputs": [str(corpus)]}, "trainig": {}})
    )
    assert main(["pretrain", str(path)]) == 2
    error = capsys.readouterr().err
    assert "unknown key trainig" in error
    assert "did you mean training?" in error
    assert main(["pretrain", str(tmp_path / "none.yaml")]) == 2
    assert main(["fill-mask", str(tmp_path), "x"]) == 3


@pytest.mark.fault
def test_a_full_disk_is_one_clear_error_wherever_it_strikes(corpus, tmp_path):
    """A small tmpfs in a mount namespace of its own: each size ends the run in another place."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("mount namespaces are not allowed here")
    mount = tmp_path / "small"
    mount.mkdir()
    data = values(corpus, mount / "run")
    data["model"]["hidden_size"] = 64
    data["training"] |= {"checkpoint_steps": 3}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    places = set()
    for size in ("24k", "100k", "150k", "700k", "1500k", "2200k"):
        line = f"mount -t tmpfs -o size={size} tmpfs {mount} && exec {' '.join(command(recipe))}"
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, check=False
        )
        assert done.returncode == 6, (size, done.stderr[-1500:])
        assert "Traceback" not in done.stderr
        (error,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
        assert "no space left" in error
        places.add(error)
    assert len(places) >= 3
