"""Labelled toy texts whose class can be read off one word, and a tokenizer that knows their words only."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from seedbed.models.folder import write_model
from seedbed.objectives import OBJECTIVES, ObjectiveConfig
from seedbed.tasks import Example, TaskConfig, TaskData
from toys import RESERVED, toy_model

NUM_WORDS = 59  # ids 5 .. 63 of the toy vocabulary


class ToyTokenizer(SimpleNamespace):
    """Words "w5" to "w63", each its own token."""

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


def toy_task(
    kind: str = "classification", *, pairs: bool = False, count: int = 32, seed: int = 0
) -> TaskData:
    """Texts of 3 to 11 words. Class: which of w5, w6, w7 is in the (second) text; score: how often w5 is; answer: the text turned round."""
    chance = random.Random(seed)
    config = TaskConfig(name="toy", kind=kind, train=["toy"], text_pair="pair" if pairs else None)  # type: ignore[arg-type]
    examples = []
    for line in range(count):
        words = [f"w{chance.randrange(8, 64)}" for _ in range(chance.randrange(2, 11))]
        text = " ".join(f"w{chance.randrange(8, 64)}" for _ in range(chance.randrange(1, 8)))
        label: Any
        if kind == "generation":
            label = " ".join(reversed(words[:3]))
        elif kind == "regression":
            label = float(line % 3)
            words = ["w5"] * (line % 3) + words
        else:
            label = ("a", "b", "c")[line % 3]
            words.insert(chance.randrange(len(words)), f"w{5 + line % 3}")
        joined = " ".join(words)
        first, second = (text, joined) if pairs else (joined, None)
        examples.append(Example(first, second, label, "toy", line + 1))
    labels = ("a", "b", "c") if kind == "classification" else ()
    return TaskData(config, labels, {"train": examples, "dev": examples[: count // 2], "test": []}, (), 0)


TEACHERS = {
    "encoder": ("bert", "masked_lm"),
    "decoder": ("gpt2", "causal_lm"),
    "encoder_decoder": ("bart", "span_corruption"),
}
"""For each kind of student: a teacher's family, and the objective both are distilled at."""


def toy_section(name: str, folder: Path, stack: str = "encoder") -> ObjectiveConfig:
    """The config of an objective for toys: of those that read labelled texts, with files of them; with a teacher."""
    kind = OBJECTIVES[name]
    if name == "distillation":
        family, base = TEACHERS[stack]
        teacher = toy_model(family, seed=9, vocabulary=RESERVED, num_layers=3, hidden_size=128, ffn_size=128)
        write_model(teacher, folder / "teacher", form="huggingface")
        section = {"teacher": str(folder / "teacher"), "of": {"name": base}, "cosine_weight": 0.0}
        if stack != "encoder_decoder":  # of which only outputs are compared
            section["hidden_weight"] = 1.0  # of students of any width: states are projected
        return kind.model_validate(section)
    if name == "contrastive":
        return kind.model_validate({"group_rows": 4})
    field = kind.model_fields.get("task")
    if field is None or field.annotation is not TaskConfig:
        return kind()
    data = toy_task("generation" if name == "supervised_generation" else "classification")
    lines = [f"{e.text}\t{e.label}" for e in data.splits["train"]]
    path = folder / f"{name}.tsv"
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return kind.model_validate({"task": {"kind": data.config.kind, "train": [str(path)], "dev": [str(path)]}})
