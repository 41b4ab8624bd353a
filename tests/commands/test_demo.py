"""The demo as a newcomer runs it, made small; and once without any network at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import seedbed
from seedbed.cli import main

SMALL = [
    "training.budget_steps=3",
    "tokenizer.vocab_size=600",
    "model.preset=tiny",
    "training.validation_rows=8",
    "runtime.threads=1",
]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_demo_leaves_what_it_promises(language, tmp_path, capsys):
    run = tmp_path / f"demo-{language}"
    assert (
        main(["demo", "--lang", language, "--run", str(run), "--json", *SMALL, "tokenizer.vocab_size=5000"])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert printed == summary
    assert {"valid_loss", "baselines", "train_seconds", "tokens_per_second", "model"} <= summary.keys()
    assert {"unigram", "bigram"} <= summary["baselines"].keys()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    text = {"en": "Alice was not a bit [MASK].", "zh": "却说曹[MASK]引兵来到。"}[language]
    loaded = seedbed.load(run)
    candidates = loaded.fill_mask(text, top_k=3)
    assert len(candidates[0]) == 3
    assert sum(c.probability for c in candidates[0]) <= 1.0
    assert main(["fill-mask", str(run), text]) == 0
    assert candidates[0][0].token in capsys.readouterr().out


def test_transformers_opens_the_model_and_agrees(tmp_path):
    """The folder opens without a conversion script, with our logits to 1e-4 and our token ids."""
    import transformers

    run = tmp_path / "run"
    assert main(["demo", "--run", str(run), "--json", *SMALL]) == 0
    ours = seedbed.load(run)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(run / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    text = "The Queen of [MASK] made some tarts, all on a summer's day."
    encoded = tokenizer(text, return_tensors="pt")
    ids = ours._framed(ours.tokenizer.encode(text, allow_special=True))
    assert encoded["input_ids"][0].tolist() == ids
    from seedbed.batch import Batch

    with torch.no_grad():
        logits = theirs(**encoded).logits
        hidden = ours.model(Batch(torch.tensor([ids])))
        assert (logits[0] - ours.model.logits(hidden.last[0])).abs().max() < 1e-4
    best = logits[0, ids.index(tokenizer.mask_token_id)].argmax()
    assert tokenizer.convert_ids_to_tokens(int(best)) == ours.fill_mask(text)[0][0].token


def test_causal_runs_generate_and_transformers_agrees(tmp_path, capsys):
    import transformers

    run = tmp_path / "causal"
    assert main(["demo", "--run", str(run), "--json", "objective.name=causal_lm", *SMALL]) == 0
    ours = seedbed.load(run)
    text = ours.generate("Alice was", max_new_tokens=8, temperature=0.0)
    assert text == ours.generate("Alice was", max_new_tokens=8, temperature=0.0)
    assert ours.generate("Alice was", seed=1, max_new_tokens=8) == ours.generate(
        "Alice was", seed=1, max_new_tokens=8
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    encoded = tokenizer("Alice was", return_tensors="pt")
    encoded.pop("token_type_ids", None)
    out = theirs.generate(**encoded, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == text
    capsys.readouterr()
    assert main(["generate", str(run), "Alice was", "--temperature", "0", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip() == text.strip()


@pytest.mark.parametrize(
    ("objective", "family"),
    [("span_corruption", "t5"), pytest.param("denoising", "bart", marks=pytest.mark.slow)],
)
def test_encoder_decoder_runs_write_what_transformers_writes(tmp_path, capsys, objective, family):
    import transformers

    run = tmp_path / family
    sections = [f"objective.name={objective}", f"model.name={family}"]
    assert main(["demo", "--run", str(run), "--json", *sections, *SMALL]) == 0
    ours = seedbed.load(run)
    sentinel = "[MASK]" if family == "bart" else "[unused0]"
    prompt = f"Alice was {sentinel} to get very tired."
    text = ours.generate(prompt, max_new_tokens=8, temperature=0.0)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(run / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    assert encoded["input_ids"][0].tolist() == ours._framed(ours.tokenizer.encode(prompt, allow_special=True))
    out = theirs.generate(**encoded, max_new_tokens=8, do_sample=False)[0].tolist()
    assert out[0] == ours.model.config.special_ids["decoder_start"]
    frame = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id}
    assert ours.tokenizer.decode([i for i in out if i not in frame], skip_special=False) == text
    samples = json.loads((run / "pretrain" / "samples.json").read_text())["after"]
    assert all(sentinel in sample["text"] and "continuation" in sample for sample in samples)
    capsys.readouterr()
    assert main(["generate", str(run), prompt, "--temperature", "0", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip() == text.strip()


def test_evaluate_agrees_with_training_and_reads_the_users_own_files(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["demo", "--run", str(run), "--json", *SMALL]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(run), "--json", "--pll-tokens", "40", "--max-mib", "0.05"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stored_targets"]["scores"]["loss"] == pytest.approx(summary["valid_loss"], rel=1e-6)
    assert result["stored_targets"]["baselines"] == pytest.approx(summary["baselines"])
    assert 0 < result["pseudo_log_likelihood"]["tokens"] <= 40
    own = tmp_path / "own.txt"
    own.write_bytes(b"A cat sat on the mat.\n\xff\xfe broken\nThe dog did not.\n")
    assert main(["evaluate", str(run), "--text", str(own), "--json", "--pll-tokens", "0"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [r["line"] for r in result["rejected"]] == [2]
    assert result["scores"]["loss"] > 0
    assert result["baselines"]["unigram"] > 0


@pytest.mark.fault
def test_a_whole_demo_runs_without_any_network(tmp_path):
    """In a network namespace of its own, where there is not even loopback; else with sockets that refuse."""
    words = [sys.executable, "-m", "seedbed", "demo", "--run", str(tmp_path / "run"), "--json", *SMALL]
    environment = dict(os.environ)
    unshare = shutil.which("unshare")
    isolated = [unshare, "-rn"] if unshare else []
    if not isolated or subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        isolated = []
        (tmp_path / "sitecustomize.py").write_text(
            "import socket\n"
            "def refuse(*a, **k): raise RuntimeError('network touched')\n"
            "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
        )
        source = str(Path(seedbed.__file__).parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), source])
    done = subprocess.run([*isolated, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["valid_loss"] > 0
