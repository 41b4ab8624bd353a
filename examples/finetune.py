"""Teach a model a task and judge it by minimal pairs, from Python.

`docs/finetuning.md` and `docs/evaluation.md` show the marked regions; the tests run them.

usage: python examples/finetune.py MODEL_FOLDER TASK.tsv PAIRS.jsonl OUT_FOLDER
"""

from __future__ import annotations

import sys


def teach(model: str, file: str, out: str) -> None:
    """Print the scores of a fine-tune on a TSV with the columns text and label."""
    # --8<-- [start:finetune]
    from pathlib import Path

    from seedbed.finetune.classify import finetune
    from seedbed.finetune.config import FinetuneConfig
    from seedbed.tasks import TaskConfig

    task = TaskConfig(name="mine", train=[file])  # a tenth is kept out for dev
    config = FinetuneConfig(task=task, seeds=2, epochs=1, max_length=32)
    result = finetune(config, Path(model), Path(out))
    print(result["scores"]["dev"]["accuracy"], result["baselines"]["dev"]["accuracy"])
    # --8<-- [end:finetune]


def judge(model: str, file: str) -> None:
    """Print the share of pairs a model gets right."""
    # --8<-- [start:pairs]
    from pathlib import Path

    import seedbed
    from seedbed.evaluation.minimal_pairs import read_pairs, report, score_pairs

    loaded = seedbed.load(model)
    pairs, rejected = read_pairs([Path(file)])
    print(len(pairs), len(rejected))
    result = report(score_pairs(loaded.model, loaded.tokenizer, pairs))
    print(result["accuracy"], result["by"]["phenomenon"])
    # --8<-- [end:pairs]


if __name__ == "__main__":
    teach(sys.argv[1], sys.argv[2], sys.argv[4])
    judge(sys.argv[1], sys.argv[3])
