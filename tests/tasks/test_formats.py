"""Files of labelled examples: every layout, the order of classes, and lines that do not fit."""

from __future__ import annotations

import gzip
import json

import pytest

from seedbed.config import validate
from seedbed.errors import ConfigError, TaskError
from seedbed.metrics import METRICS
from seedbed.tasks import TASKS, TaskConfig, choose, read_task

ROWS = [(f"a text number {i}", f"its pair {i}", ["no", "yes", "maybe"][i % 3]) for i in range(60)]


def config(tmp_path, **changes):
    values = {"train": ["train.tsv"], "dev": ["train.tsv"], **changes}
    return TaskConfig(**values).inside(tmp_path)


def write(path, text, *, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read_back(task, split="train"):
    return [(e.text, e.text_pair, e.label) for e in task.splits[split]]


LAYOUTS = {
    "tsv": ("x.tsv", {}, lambda: "text\tpair\tlabel\n" + "".join("\t".join(r) + "\n" for r in ROWS)),
    "tsv.gz": (
        "x.tsv.gz",
        {},
        lambda: "text\tpair\tlabel\r\n" + "".join("\t".join(r) + "\r\n" for r in ROWS),
    ),
    "tsv with a mark of UTF-8": (
        "x.tsv",
        {},
        lambda: "\ufefftext\tpair\tlabel\n" + "".join("\t".join(r) + "\n" for r in ROWS),
    ),
    "csv by number": (
        "x.csv",
        {"has_header": False, "text": 0, "text_pair": 1, "label": 2},
        lambda: "".join('"{}",{},{}\n'.format(*r) for r in ROWS),
    ),
    "jsonl": (
        "x.json",
        {"format": "jsonl"},
        lambda: "".join(
            json.dumps({"label": r[2], "pair": r[1], "text": r[0], "more": None}) + "\n" for r in ROWS
        ),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_examples(tmp_path, layout):
    name, changes, content = LAYOUTS[layout]
    write(tmp_path / name, content())
    task = read_task(config(tmp_path, **{"train": [name], "dev": [name], "text_pair": "pair", **changes}))
    assert read_back(task) == ROWS == read_back(task, "dev")
    assert task.labels == ("maybe", "no", "yes")
    assert task.targets("train") == [("maybe", "no", "yes").index(r[2]) for r in ROWS]
    assert task.num_rejected == 0
    assert task.label_counts("train") == {"maybe": 20, "no": 20, "yes": 20}
    first = task.splits["train"][0]
    assert first.line == (1 if "header" in str(changes) or layout == "jsonl" else 2)


def test_the_order_of_classes(tmp_path):
    lines = [f"t{i}\t{i % 12}" for i in range(24)]
    write(tmp_path / "train.tsv", "text\tlabel\n" + "\n".join(lines))
    assert read_task(config(tmp_path)).labels == tuple(map(str, range(12))), "numbers sort as numbers"
    names = {str(i): f"class {11 - i:02d}" for i in range(12)}
    mapped = read_task(config(tmp_path, label_map=names))
    assert mapped.labels == tuple(f"class {i:02d}" for i in range(12))
    given = read_task(config(tmp_path, labels=[str(i) for i in reversed(range(12))]))
    assert given.targets("train")[:3] == [11, 10, 9]


def test_quotes_mean_nothing_in_tsv_and_something_in_csv(tmp_path):
    write(tmp_path / "train.tsv", 'text\tlabel\n"open quote\ta\nplain\tb\n')
    assert read_back(read_task(config(tmp_path))) == [('"open quote', None, "a"), ("plain", None, "b")]
    write(tmp_path / "train.csv", 'text,label\n"two\nlines, ""x""",a\nplain,b\n')
    csv = read_task(config(tmp_path, train=["train.csv"], dev=["train.csv"]))
    assert read_back(csv) == [('two\nlines, "x"', None, "a"), ("plain", None, "b")]
    write(tmp_path / "train.tsv", 'text\tlabel\n"a\tb"\ta\nplain\tb\n')
    assert read_back(read_task(config(tmp_path, quoting="csv")))[0] == ("a\tb", None, "a")


def test_lines_that_do_not_fit_are_listed_with_their_place(tmp_path):
    good = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(4))
    write(tmp_path / "train.tsv", "text\tlabel\n" + good)
    write(
        tmp_path / "dev.tsv", "text\tlabel\n" + good + "no label\n \ta\nx\t\nx\tc\nx\ta\ttoo many\nlast\tb\n"
    )
    task = read_task(config(tmp_path, dev=["dev.tsv"]))
    assert len(task.splits["dev"]) == 5
    assert task.num_rejected == 5
    assert {r.line: r.reason for r in task.rejected} == {
        6: "1 columns, 2 are needed",
        7: "the text is empty",
        8: "the label is empty",
        9: "the class 'c' is none of the 2 known ones",
        10: "3 columns, 2 are needed",
    }
    assert {r.file for r in task.rejected} == {str(tmp_path / "dev.tsv")}


def test_bad_json_lines_are_listed(tmp_path):
    lines = [json.dumps({"text": "x", "label": 0}), "{", "[1]", '{"text": "x"}', '{"text": null, "label": 1}']
    lines.append(json.dumps({"text": "y", "label": 1}))
    write(tmp_path / "x.jsonl", "\n".join(lines))
    task = read_task(config(tmp_path, train=["x.jsonl"], dev=["x.jsonl"]))
    assert task.labels == ("0", "1")
    assert [r.line for r in task.rejected][:4] == [2, 3, 4, 5]


def test_regression(tmp_path):
    write(tmp_path / "train.tsv", "text\tlabel\na\t0.5\nb\t-3\nc\tnan\nd\tmuch\n")
    task = read_task(config(tmp_path, kind="regression"))
    assert task.targets("train") == [0.5, -3.0]
    assert task.labels == ()
    assert [r.line for r in task.rejected][:2] == [4, 5]
    assert task.config.metric_names() == ["spearman", "pearson"]


def test_one_text_a_line_with_the_class_of_its_file(tmp_path):
    write(tmp_path / "good.txt", "fine\n\nvery fine\n")
    write(tmp_path / "bad.txt", "poor\n")
    files = {"good.txt": "good", "bad.txt": "bad"}
    task = read_task(config(tmp_path, train=list(files), dev=["bad.txt"], file_labels=files))
    assert read_back(task) == [("fine", None, "good"), ("very fine", None, "good"), ("poor", None, "bad")]


def test_dev_is_kept_out_by_hash_where_there_is_none(tmp_path):
    write(tmp_path / "train.tsv", "text\tlabel\n" + "".join(f"text {i % 400}\t{i % 2}\n" for i in range(800)))
    task = read_task(config(tmp_path, dev=[]))
    train, dev = ({e.text for e in task.splits[s]} for s in ("train", "dev"))
    assert not train & dev, "equal texts go the same way"
    assert len(train | dev) == 400
    assert 20 <= len(dev) <= 60
    assert read_task(config(tmp_path, dev=[])).splits == task.splits


def test_a_subset_keeps_order_and_grows_by_adding(tmp_path):
    write(tmp_path / "train.tsv", "text\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(50)))
    examples = read_task(config(tmp_path)).splits["train"]
    few, more = choose(examples, 10), choose(examples, 20)
    assert [e.line for e in few] == sorted(e.line for e in few)
    assert len(few) == 10
    assert set(few) < set(more)
    assert choose(examples, 0) == examples == choose(examples, 99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "names no training file"),
        ({"train": ["none.tsv"]}, "does not exist"),
        ({"text": "sentence"}, "line 1: there is no column 'sentence'; the header is text, label"),
        ({"labels": ["x", "y"]}, r"hold no example. The first of 3: .*train.tsv, line 2"),
        ({"label_map": {"b": "a"}}, "has 1 class"),
        ({"train": ["train.dat"]}, "ending says no format"),
        ({"train": ["cut.tsv.gz"]}, "cut.tsv.gz"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_hint(tmp_path, changes, message):
    write(tmp_path / "train.tsv", "text\tlabel\nx\ta\ny\tb\nz\ta\n")
    write(tmp_path / "train.dat", "text\tlabel\nx\ta\ny\tb\nz\ta\n")
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(b"text\tlabel\nx\ta\n" * 99)[:-30])
    with pytest.raises(TaskError, match=message) as refused:
        read_task(config(tmp_path, **changes))
    assert refused.value.hint


def test_a_metric_that_does_not_fit_is_refused():
    for metrics in (["acuracy"], ["spearman"]):
        with pytest.raises(ConfigError):
            validate(TaskConfig, {"metrics": metrics}, place="test")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_every_metric_of_a_kind_may_judge_it(kind):
    names = [name for name, metric in METRICS.items() if metric.kind == kind]
    assert TaskConfig(kind=kind, metrics=names).metric_names() == names


COUNTS = {
    "books-en": (20166, None, 0, 6),
    "books-zh": (43649, None, 0, 2),
    "sst2": (67349, 872, 0, 2),
    "cola": (8551, 527, 0, 2),
    "mrpc": (3576, 500, 0, 2),
    "rte": (2567, 800, 0, 2),
    "stsb-en": (5749, 1500, 0, 0),
    "stsb-zh": (5749, 1500, 0, 0),
    "chnsenticorp": (9600, 1200, 1200, 2),
    "tnews": (1185, 1098, 2010, 15),
    "eprstmt": (160, 160, 610, 2),
    "bustm": (160, 160, 1772, 2),
    "ocnli": (160, 160, 2520, 3),
    "banking77": (10003, None, 3080, 77),
    "financial-phrasebank": (2264, None, 0, 3),
    "subjectivity": (10000, None, 0, 2),
}


@pytest.mark.data
@pytest.mark.parametrize("name", TASKS)
def test_the_known_tasks_read_whole(data_dir, name):
    task = read_task(TASKS[name].inside(data_dir))
    train, dev, test, classes = COUNTS[name]
    sizes = {split: len(examples) for split, examples in task.splits.items()}
    if dev is None:
        assert sizes["train"] + sizes["dev"] + task.num_rejected == train
        assert 0.07 * train < sizes["dev"] < 0.13 * train
    else:
        rejected = task.num_rejected
        assert train - rejected <= sizes["train"] <= train
        assert dev - rejected <= sizes["dev"] <= dev
    assert sizes["test"] >= test - task.num_rejected
    assert len(task.labels) == classes
    assert task.num_rejected <= 2 + 0.01 * train, list(task.rejected)[:5]
    if classes:
        assert min(task.label_counts("train").values()) > 0


def test_each_sentence_of_a_line_is_a_text(tmp_path):
    write(tmp_path / "a.txt", "One. Two!\n\n三。 四！\n")
    write(tmp_path / "b.txt.gz", "Dr. Five goes on.\n")
    labels = {"a.txt": "a", "b.txt.gz": "b"}
    task = config(tmp_path, train=list(labels), dev=list(labels), format="sentences", file_labels=labels)
    found = [(e.text, e.label, e.line) for e in read_task(task).splits["train"]]
    a = [("One.", "a", 1), ("Two!", "a", 1), ("三。", "a", 3), ("四！", "a", 3)]
    assert found == [*a, ("Dr. Five goes on.", "b", 1)]


@pytest.mark.parametrize(("name", "books"), [("books-en", 6), ("books-zh", 2)])
def test_tasks_that_ship_need_no_files(tmp_path, name, books):
    data = read_task(TASKS[name].inside(tmp_path))
    assert len(data.labels) == books
    assert {e.label for e in data.splits["dev"]} == set(data.labels)
    assert 0.08 < len(data.splits["dev"]) / (len(data.splits["train"]) + len(data.splits["dev"])) < 0.12
    assert not {e.text for e in data.splits["dev"]} & {e.text for e in data.splits["train"]}
    assert not data.rejected
