"""A text and the overrides that make a run of seconds of any recipe."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from seedbed.artifact import open_verified
from seedbed.commands import pretraining
from seedbed.commands.console import Console
from seedbed.config import validate
from seedbed.recipe import Recipe
from seedbed.training import loop


def write_toy_text(folder: Path) -> Path:
    """Write forty documents in two languages; return the folder."""
    chance = random.Random(0)
    english = [
        "alice",
        "rabbit",
        "queen",
        "garden",
        "tired",
        "little",
        "said",
        "went",
        "the",
        "a",
        "was",
        "not",
    ]
    chinese = "却说曹操引兵来到城下玄德大喜关公张飞自此天下三分"
    documents = []
    for number in range(40):
        lines = [f"Chapter {number}"]
        for _ in range(6):
            lines.append(" ".join(chance.choices(english, k=12)).capitalize() + ".")
            lines.append("".join(chance.choices(chinese, k=16)) + "。")
        documents.append("\n".join(lines))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return folder


TINY = [
    "corpus.validation_fraction=0.2",
    "tokenizer.vocab_size=400",
    "model.preset=tiny",
    "model.max_length=32",
    "data.row_length=32",
    "training.budget_minutes=null",
    "training.budget_tokens=null",
    "training.budget_steps=2",
    "training.max_minutes=null",  # no probe
    "training.batch_tokens=128",
    "training.micro_batch_rows=4",
    "runtime.threads=1",  # two threads on a busy machine wait for each other: 40 s instead of 3
]


def tiny_sections() -> dict[str, Any]:
    """Return TINY as sections of a recipe, without its budget: what the arms of a comparison share."""
    found: dict[str, Any] = {}
    for override in TINY:
        key, _, raw = override.partition("=")
        if key.startswith("training.budget"):
            continue
        node = found
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(raw)
    return found


def write_sentences(folder: Path, *, num_documents: int = 40) -> Path:
    """Documents of several sentences in both languages, the same every time."""
    words = [
        "the",
        "a",
        "cat",
        "dog",
        "house",
        "tree",
        "river",
        "sings",
        "runs",
        "sleeps",
        "under",
        "over",
        "and",
        "but",
        "red",
        "blue",
        "green",
        "old",
        "new",
        "time",
    ]
    han = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    chooser = random.Random(7)
    documents = []
    for _ in range(num_documents):
        lines = []
        for _ in range(4):
            sentences = [" ".join(chooser.choices(words, k=6)).capitalize() + "." for _ in range(3)]
            lines.append(" ".join(sentences))
            lines.append("".join("".join(chooser.choices(han, k=6)) + "。" for _ in range(3)))
        documents.append("\n".join(lines))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "text.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def strategy_section(name: str, folder: Path, tokenizer: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a recipe must say beside the name of a strategy: its `objective` section, and keys of `model`.

    Files it needs are written to `folder`; a teacher reads with `tokenizer`.
    """
    objective: dict[str, Any] = {"name": name}
    model: dict[str, Any] = {}
    if name == "mixture":
        objective["entries"] = [
            {"objective": {"name": "masked_lm"}},
            {"objective": {"name": "masked_diffusion"}},
        ]
    if name == "distillation":
        objective["teacher"] = str(write_teacher(folder / "teacher", tokenizer))
    if name == "contrastive":
        objective["group_rows"] = 8
    if name in ("classification", "supervised_generation"):
        kind = "generation" if name == "supervised_generation" else name
        lines = [f"the {animal} sings {i}\t{animal}" for i in range(12) for animal in ("cat", "dog")]
        path = folder / "task.tsv"
        path.write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
        objective["task"] = {"kind": kind, "train": [str(path)], "dev": [str(path)]}
    return objective, model


def write_teacher(folder: Path, tokenizer: Any) -> Path:
    """An untrained BERT of three layers with its tokenizer, as a Hugging Face folder."""
    from seedbed.models.bert import BertConfig
    from seedbed.models.folder import write_model
    from seedbed.models.language_model import build_model

    section = BertConfig(num_layers=3, hidden_size=32, num_heads=2, ffn_size=64)
    write_model(
        build_model(section.build(vocab_size=tokenizer.vocab_size), seed=9), folder, form="huggingface"
    )
    tokenizer.save(folder, kind="encoder", max_length=512, token_types=True)
    return folder


STEPS = 4


class Signalled(list):
    """Stand in for the signal handler: a signal arrived."""

    def __init__(self):
        super().__init__([15])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def values(corpus, run, **sections):
    model = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 64, "hidden_dropout": 0.1}
    return {
        "run": str(run),
        "corpus": {"inputs": [str(corpus)], "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 300, "num_reserved": 32},
        "data": {"row_length": 32},
        "model": model | sections.pop("model", {}),
        "training": {
            "budget_steps": STEPS,
            "batch_tokens": 512,
            "micro_batch_rows": 8,
            "validation_steps": 2,
            "validation_rows": 16,
            "keep_best": False,
        },
        "runtime": {"threads": 1},
        **sections,
    }


def train(prepared, data, monkeypatch=None, stop_after=None):
    """Train from the store in another run folder."""
    recipe = validate(Recipe, data, place="test")
    with pytest.MonkeyPatch.context() as patch:
        if stop_after is not None:

            def stopping(state, run_window, **options):
                options["is_interrupted"] = lambda: state.window >= stop_after
                return loop.fit(state, run_window, **options)

            patch.setattr(pretraining, "fit", stopping)
            patch.setattr(pretraining, "_signals", Signalled)
        return pretraining.pretrain(recipe, replace(prepared, run=recipe.run_folder()), Console(as_json=True))


def decided(run):
    return open_verified(run / "model").digest, (run / "pretrain" / "metrics.jsonl").read_text()
