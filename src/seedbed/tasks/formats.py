"""Read labelled examples from the files people have: TSV, CSV, JSON lines, plain lines or sentences; each also .gz or .zst.

A `TaskConfig` says where they are and which column means what; `read_task` gives the examples of its splits, the order of
the classes, and every line that was left out with its reason. The layouts of public data sets are in `known.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import Field, model_validator

from seedbed.config import Config
from seedbed.corpus.lines import Line, read_lines
from seedbed.corpus.readers import Limits, delimited_fields
from seedbed.corpus.rejects import Reject
from seedbed.corpus.sources import Format, Source, WrongEndingError, format_of, open_source
from seedbed.errors import TaskError
from seedbed.tokenizer.sentences import sentences

__all__ = [
    "SPLITS",
    "Example",
    "Kind",
    "Rejected",
    "Split",
    "TaskConfig",
    "TaskData",
    "choose",
    "read_examples",
    "read_task",
]

Kind = Literal["classification", "regression", "generation"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "f1_macro", "matthews"),
    "regression": ("pearson", "spearman"),
    "generation": (),
}
"""What may judge each kind of task: names in `metrics.METRICS`, which stands beside this folder (a test compares them)."""
_LISTED = 1000  # rejected lines kept with their reasons; all are counted


class TaskConfig(Config):
    """Say where a task's labelled examples are and what their columns mean."""

    name: str = Field("task", description="What the task is called: part of folder names.")
    kind: Kind = Field(
        "classification",
        description="classification: one of C classes. regression: a number. generation: an answer text.",
    )
    train: list[str] = Field(
        default_factory=list, description="Training files, relative to the data folder; .gz and .zst too."
    )
    dev: list[str] = Field(
        default_factory=list,
        description="Files that stop training and choose the weights. None: see dev_fraction.",
    )
    test: list[str] = Field(default_factory=list, description="Files scored once, at the end.")
    dev_fraction: float = Field(
        0.1,
        gt=0.0,
        lt=1.0,
        description="Without dev files: share of the training examples kept out for it, chosen by hash of the text.",
    )
    format: Literal["auto", "tsv", "csv", "jsonl", "lines", "sentences"] = Field(
        "auto",
        description="auto: by the file's ending (.tsv, .csv, .jsonl; .txt is lines: one text a line). sentences: each sentence"
        " of a line is a text.",
    )
    has_header: bool = Field(True, description="TSV and CSV: the first line names the columns.")
    quoting: Literal["auto", "csv", "none"] = Field(
        "auto", description='Whether "..." may hold delimiters and line ends. auto: in CSV yes, in TSV no.'
    )
    text: str | int = Field("text", description="Column of the text: its name, or its number from 0.")
    text_pair: str | int | None = Field(None, description="Column of a second text (matching, entailment).")
    label: str | int = Field("label", description="Column of the class, the number or the answer.")
    labels: list[str] = Field(
        default_factory=list,
        description="Class names in the order of the outputs. Empty: those of the training files, sorted.",
    )
    label_map: dict[str, str] = Field(
        default_factory=dict, description="What files write -> class name, where they differ."
    )
    file_labels: dict[str, str] = Field(
        default_factory=dict,
        description="Formats lines and sentences: the class of all texts of a file, by file.",
    )
    metrics: list[str] = Field(
        default_factory=list,
        description="Scores to report; the first one stops training. Empty: accuracy, or spearman and pearson.",
    )

    @model_validator(mode="after")
    def _fits(self) -> TaskConfig:
        known = _METRICS[self.kind]
        if unknown := [m for m in self.metrics if m not in known]:
            raise ValueError(
                f"{', '.join(unknown)} cannot score a {self.kind} task; choose from {', '.join(known) or 'none'}"
            )
        if self.file_labels and (missing := {*self.train, *self.dev, *self.test} - set(self.file_labels)):
            raise ValueError(f"file_labels names no class for {', '.join(sorted(missing))}")
        return self

    def metric_names(self) -> list[str]:
        """Return the metrics to report, the deciding one first."""
        defaults = {"classification": ["accuracy"], "regression": ["spearman", "pearson"], "generation": []}
        return list(self.metrics) or defaults[self.kind]

    def inside(self, folder: Path | str) -> TaskConfig:
        """Return the task with its files looked for in a data folder."""

        def found(names: Sequence[str]) -> list[str]:
            return [str(Path(folder) / name) for name in names]

        return self.updated(
            train=found(self.train),
            dev=found(self.dev),
            test=found(self.test),
            file_labels={str(Path(folder) / name): label for name, label in self.file_labels.items()},
        )


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled example.

    Attributes:
        text: the text; the prompt of a generation task.
        text_pair: the second text of a pair, or None.
        label: class name (classification), number (regression) or answer (generation).
        file, line: where it stands.
    """

    text: str
    text_pair: str | None
    label: str | float
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that was left out, and why; the reason holds no text of the input."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskData:
    """Hold what was read.

    Attributes:
        config: what was asked for.
        labels: class names in the order of the outputs; empty unless a classification.
        splits: examples by split, in the order of the files; "test" may be empty.
        rejected: lines left out, the first 1,000.
        num_rejected: all of them.
    """

    config: TaskConfig
    labels: tuple[str, ...]
    splits: dict[Split, list[Example]]
    rejected: tuple[Rejected, ...]
    num_rejected: int

    def targets(self, split: Split) -> list[int] | list[float]:
        """Return class numbers, or numbers, of a split's examples."""
        if self.config.kind == "regression":
            return [float(example.label) for example in self.splits[split]]
        index = {name: number for number, name in enumerate(self.labels)}
        return [index[str(example.label)] for example in self.splits[split]]

    def label_counts(self, split: Split) -> dict[str, int]:
        """Return how many examples of a split each class has, in the order of the classes."""
        counts = Counter(example.label for example in self.splits[split])
        return {label: counts[label] for label in self.labels}


def read_task(config: TaskConfig) -> TaskData:
    """Read every split of a task.

    A line that does not fit (a missing column, an empty text, an unknown class) is left out and listed; a file that
    cannot be read stops.

    Raises:
        TaskError: a file is missing, damaged or lacks a column; a split has no examples; fewer than two
            classes. Names file and line.
    """
    if not config.train:
        raise TaskError(f"the task {config.name} names no training file.", hint="set task.train to its files")
    rejects = _Rejects()
    splits: dict[Split, list[Example]] = {}
    labels: tuple[str, ...] = tuple(config.labels)
    for split in SPLITS:
        paths: list[str] = getattr(config, split)
        examples = [example for path in paths for example in _examples(config, Path(path), rejects)]
        if config.kind == "classification":
            if not labels:  # the training split comes first
                labels = tuple(_sorted_labels({str(example.label) for example in examples}))
            examples = list(_of_known_class(examples, labels, rejects))
        if paths and not examples:
            first = f" The first of {rejects.count}: {rejects.first()}." if rejects.count else ""
            raise TaskError(
                f"the {split} files of task {config.name} ({', '.join(paths)}) hold no example.{first}",
                hint="check format, columns and labels of the task",
            )
        splits[split] = examples
    if config.kind == "classification" and len(labels) < 2:
        raise TaskError(
            f"the task {config.name} has {len(labels)} class ({', '.join(labels)}); it needs two or more.",
            hint="is task.label the right column?",
        )
    if not config.dev:
        bound = int(config.dev_fraction * 2**64)
        kept_out = [example for example in splits["train"] if _hash(example) < bound]
        splits["train"] = [example for example in splits["train"] if _hash(example) >= bound]
        splits["dev"] = kept_out
        if not kept_out or not splits["train"]:
            raise TaskError(
                f"the task {config.name} has too few examples to keep some out for dev.",
                hint="give dev files, or more examples",
            )
    return TaskData(config, labels, splits, tuple(rejects.listed), rejects.count)


def read_examples(config: TaskConfig, paths: Sequence[Path]) -> tuple[list[Example], list[Rejected], int]:
    """Read the examples of files that are no split of the task: columns and format are the task's, `train` and `dev` unused.

    Returns:
        The examples in order, the first 1,000 lines left out, and how many those are.

    Raises:
        TaskError: a file is missing, damaged or lacks a column.
    """
    rejects = _Rejects()
    examples = [example for path in paths for example in _examples(config, path, rejects)]
    return examples, rejects.listed, rejects.count


def choose(examples: Sequence[Example], count: int) -> list[Example]:
    """Return `count` examples, those with the smallest hashes of their texts, in their order; 0 or too many: all."""
    if not 0 < count < len(examples):
        return list(examples)
    kept = sorted(range(len(examples)), key=lambda i: (_hash(examples[i]), i))[:count]
    return [examples[i] for i in sorted(kept)]


class _Rejects:
    """Count what is left out, and keep the first ones."""

    def __init__(self) -> None:
        self.listed: list[Rejected] = []
        self.count = 0

    def add(self, file: str, line: int, reason: str) -> None:
        self.count += 1
        if len(self.listed) < _LISTED:
            self.listed.append(Rejected(file, line, reason))

    def report(self, reject: Reject) -> None:
        """Take a reject of the corpus readers; a file that is damaged or no text stops."""
        if not reject.line or reject.kind == "damaged_file":
            raise TaskError(f"{reject}.", hint="restore or convert the file")
        self.add(reject.file, reject.line, reject.reason)

    def first(self) -> str:
        found = self.listed[0]
        return f"{found.file}, line {found.line}: {found.reason}"


def _examples(config: TaskConfig, path: Path, rejects: _Rejects) -> Iterator[Example]:
    """Yield the examples of one file."""
    for line, text, pair, label in _records(config, path, rejects):
        reason = ""
        if not text.strip() or (pair is not None and not pair.strip()):
            reason = "the text is empty"
        elif not label.strip():
            reason = "the label is empty"
        value: str | float = config.label_map.get(label.strip(), label.strip())
        if config.kind == "generation":
            value = label
        elif config.kind == "regression" and not reason:
            number = _number(str(value))
            reason = "" if number is not None else "the label is not a finite number"
            value = number if number is not None else 0.0
        if reason:
            rejects.add(str(path), line, reason)
            continue
        yield Example(text.strip(), pair.strip() if pair is not None else None, value, str(path), line)


def _records(config: TaskConfig, path: Path, rejects: _Rejects) -> Iterator[tuple[int, str, str | None, str]]:
    """Yield (line, text, second text, label as written) of each record of a file."""
    if not path.is_file():
        raise TaskError(f"{path} does not exist or is no file.", hint="check the path and the data folder")
    endings: dict[Format | None, str] = {"tsv": "tsv", "csv": "csv", "jsonl": "jsonl", "txt": "lines"}
    kind = endings.get(format_of(str(path)), "") if config.format == "auto" else config.format
    if not kind:
        raise TaskError(
            f"{path}: the ending says no format of a task.",
            hint="set task.format to tsv, csv, jsonl, lines or sentences",
        )
    source, limits = Source(str(path), path, "txt"), Limits()
    try:
        with open_source(source) as (stream, raw):
            lines = read_lines(
                str(path), stream, raw, limits.max_line_bytes, rejects.report, lambda done: None
            )
            if kind in ("lines", "sentences"):
                label = config.file_labels.get(str(path))
                if label is None:
                    raise TaskError(
                        f"{path} holds texts without labels.", hint=f"set task.file_labels[{str(path)!r}]"
                    )
                for number, line in lines:
                    for text in sentences(line) if kind == "sentences" else [line]:
                        if text.strip():
                            yield number, text, None, label
            elif kind == "jsonl":
                yield from _json_records(config, str(path), lines, rejects)
            else:
                delimiter = "\t" if kind == "tsv" else ","
                is_quoted = kind == "csv" if config.quoting == "auto" else config.quoting == "csv"
                rows = delimited_fields(
                    str(path), lines, limits, rejects.report, delimiter=delimiter, is_quoted=is_quoted
                )
                yield from _columns(config, str(path), rows, rejects)
    except (OSError, WrongEndingError) as error:
        raise TaskError(f"{path} cannot be read: {error}.", hint="restore or rename the file") from error


def _columns(
    config: TaskConfig, file: str, rows: Iterator[tuple[int, list[str]]], rejects: _Rejects
) -> Iterator[tuple[int, str, str | None, str]]:
    header: list[str] | None = None
    if config.has_header:
        number, header = next(rows, (1, []))

    def place(column: str | int) -> int:
        if isinstance(column, int):
            return column
        if header is None or header.count(column) != 1:
            what = "the file has no header" if header is None else f"the header is {', '.join(header)}"
            raise TaskError(
                f"{file}, line 1: there is no column {column!r}; {what}.",
                hint="set task.text, task.text_pair and task.label to names of columns, or to their numbers from 0",
            )
        return header.index(column)

    text, label = place(config.text), place(config.label)
    pair = None if config.text_pair is None else place(config.text_pair)
    needed = 1 + max(text, label, pair or 0)
    for number, fields in rows:
        if len(fields) < needed or (header is not None and len(fields) > len(header)):
            rejects.add(
                file, number, f"{len(fields)} columns, {len(header) if header else needed} are needed"
            )
            continue
        yield number, fields[text], None if pair is None else fields[pair], fields[label]


def _json_records(
    config: TaskConfig, file: str, lines: Iterator[Line], rejects: _Rejects
) -> Iterator[tuple[int, str, str | None, str]]:
    columns = [config.text, config.label] + ([] if config.text_pair is None else [config.text_pair])
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            rejects.add(file, number, f"not valid JSON ({type(error).__name__})")
            continue
        if not isinstance(value, dict):
            rejects.add(file, number, "the line is not a JSON object")
            continue
        missing = [str(c) for c in columns if not isinstance(value.get(str(c)), str | int | float)]
        if missing:
            rejects.add(file, number, f"no text or number at {', '.join(missing)}")
            continue
        found = [str(value[str(c)]) for c in columns]
        yield number, found[0], found[2] if len(found) > 2 else None, found[1]


def _of_known_class(
    examples: Sequence[Example], labels: Sequence[str], rejects: _Rejects
) -> Iterator[Example]:
    known = set(labels)
    for example in examples:
        if example.label in known:
            yield example
        else:
            shown = repr(example.label)[:40]
            rejects.add(
                example.file, example.line, f"the class {shown} is none of the {len(known)} known ones"
            )


def _sorted_labels(labels: set[str]) -> list[str]:
    """Sort as numbers where all are whole numbers, else as text."""
    if all(label.lstrip("-").isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None


def _hash(example: Example) -> int:
    return xxhash.xxh3_64_intdigest(f"{example.text}\0{example.text_pair or ''}".encode())
