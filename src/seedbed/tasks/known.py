"""The layouts of public data sets, relative to a data folder the user gives; one line each makes a task known by name.

The files themselves are not ours to ship. Their sources and licences are in docs/finetuning.md. Two tasks need none: they are
made of the books that come with the package.
"""

from __future__ import annotations

from typing import Any, Literal

from seedbed.corpus.bundled import bundled_corpus
from seedbed.tasks.formats import TaskConfig

__all__ = ["TASKS"]


def _fewclue(name: str, **more: Any) -> TaskConfig:
    """A few-shot task of FewCLUE, on its whole (unsplit) training and dev files."""
    names = ("train_few_all", "dev_few_all", "test_public")
    train, dev, test = ([f"fewclue/{name}/{part}.json.gz"] for part in names)
    return TaskConfig(name=name, train=train, dev=dev, test=test, format="jsonl", **more)


def _books(name: str, language: Literal["en", "zh"]) -> TaskConfig:
    """Which book of the bundled corpus a sentence is from."""
    files = {
        str(path): path.name.partition(".")[0] for path in sorted(bundled_corpus(language).glob("*.txt.gz"))
    }
    return TaskConfig(name=name, train=list(files), format="sentences", file_labels=files)


def _stsb(language: str) -> TaskConfig:
    return TaskConfig(
        name=f"stsb-{language}",
        kind="regression",
        train=[f"stsb/{language}-train.csv"],
        dev=[f"stsb/{language}-dev.csv"],
        has_header=False,
        text=0,
        text_pair=1,
        label=2,
        metrics=["spearman", "pearson"],
    )


_PAIR = {"text": "sentence1", "text_pair": "sentence2"}
_FEELING = {"labels": ["negative", "positive"], "label_map": {"0": "negative", "1": "positive"}}

_ALL = (
    _books("books-en", "en"),
    _books("books-zh", "zh"),
    TaskConfig(name="sst2", train=["sst2/train.tsv.gz"], dev=["sst2/dev.tsv"], text="sentence", **_FEELING),
    TaskConfig(
        name="cola",
        train=["cola/in_domain_train.tsv"],
        dev=["cola/in_domain_dev.tsv"],
        has_header=False,
        text=3,
        label=1,
        labels=["unacceptable", "acceptable"],
        label_map={"0": "unacceptable", "1": "acceptable"},
        metrics=["matthews", "accuracy"],
    ),
    TaskConfig(
        name="mrpc",
        train=["mrpc/train.tsv"],
        dev=["mrpc/val.tsv"],
        text="#1 String",
        text_pair="#2 String",
        label="Quality",
        labels=["different", "paraphrase"],
        label_map={"0": "different", "1": "paraphrase"},
        metrics=["f1", "accuracy"],
    ),
    TaskConfig(
        name="rte",
        train=["rte/train.tsv"],
        dev=["rte/dev.tsv"],
        text="premise",
        text_pair="hypothesis",
        labels=["entailment", "not_entailment"],
    ),
    _stsb("en"),
    _stsb("zh"),
    TaskConfig(
        name="subjectivity",
        train=["subjectivity/plot.txt.gz", "subjectivity/quote.txt.gz"],
        format="lines",
        labels=["objective", "subjective"],
        file_labels={
            "subjectivity/plot.txt.gz": "objective",
            "subjectivity/quote.txt.gz": "subjective",
        },
    ),
    TaskConfig(
        name="chnsenticorp",
        train=["chnsenticorp/train.tsv.gz"],
        dev=["chnsenticorp/dev.tsv.gz"],
        test=["chnsenticorp/test.tsv.gz"],
        text="text_a",
        **_FEELING,
    ),
    _fewclue("tnews", text="sentence", label="label_desc"),
    _fewclue(
        "eprstmt",
        text="sentence",
        labels=["negative", "positive"],
        label_map={"Negative": "negative", "Positive": "positive"},
    ),
    _fewclue("bustm", labels=["different", "same"], label_map={"0": "different", "1": "same"}, **_PAIR),
    _fewclue("ocnli", labels=["entailment", "neutral", "contradiction"], **_PAIR),
    TaskConfig(
        name="banking77",
        train=["banking77/train.csv"],
        test=["banking77/test.csv"],
        label="category",
        metrics=["accuracy", "f1_macro"],
    ),
    TaskConfig(
        name="financial-phrasebank",
        train=["financial-phrasebank/Sentences_AllAgree.tsv"],
        text="sentence",
        labels=["negative", "neutral", "positive"],
        metrics=["accuracy", "f1_macro"],
    ),
)

TASKS: dict[str, TaskConfig] = {task.name: task for task in _ALL}
