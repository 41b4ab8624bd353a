"""Corpora that continue others: each document is trained on once, and the validation split stays what it was."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from seedbed.artifact import open_verified
from seedbed.corpus.pipeline import CorpusConfig, build_corpus, iter_documents
from seedbed.errors import ConfigError, DataError, IncompatibleError, IntegrityError


def write_days(folder: Path) -> list[list[str]]:
    """Three days of documents; each day's file also holds some of the days before."""
    chooser = random.Random(3)
    days = [
        [f"day {d} number {n} " + " ".join(chooser.choices("abcdef", k=9)) for n in range(60)]
        for d in range(3)
    ]
    for number, day in enumerate(days):
        repeated = [text for earlier in days[:number] for text in earlier[::7]]
        (folder / f"day-{number}.txt").write_text("\n\n".join([*day, *repeated]) + "\n", encoding="utf-8")
    return days


def texts_of(run: Path, split: str) -> list[str]:
    return [document.text for document in iter_documents(open_verified(run / "corpus"), split)]


def build(folder: Path, number: int, **changes):
    values = {
        "inputs": (str(folder / f"day-{number}.txt"),),
        "validation_fraction": 0.2,
        "test_fraction": 0.1,
    }
    if number:
        values["append_to"] = str(folder / f"run-{number - 1}")
    return build_corpus(CorpusConfig(**{**values, **changes}), folder / f"run-{number}")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("days")
    days = write_days(folder)
    return folder, days, [build(folder, number) for number in range(3)]


def test_every_document_is_trained_on_once_and_held_out_ones_never(chain):
    folder, days, _ = chain
    trained = [text for number in range(3) for text in texts_of(folder / f"run-{number}", "train")]
    held_out = texts_of(folder / "run-0", "validation") + texts_of(folder / "run-0", "test")
    assert len(trained) == len(set(trained))
    assert not set(trained) & set(held_out)
    assert sorted(trained + held_out) == sorted(text for day in days for text in day)
    assert set(days[2]) == set(texts_of(folder / "run-2", "train"))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_held_out_splits_stay_as_they_were(chain, split):
    folder, *_ = chain
    assert texts_of(folder / "run-0", split)
    assert texts_of(folder / "run-0", split) == texts_of(folder / "run-2", split)


def test_what_is_left_out_is_listed_and_counted(chain):
    folder, _, artifacts = chain
    counts = artifacts[2].counts
    assert counts["rejects"]["earlier"] == 18  # every seventh of two days of sixty
    assert counts["faults"] == 0
    reasons = [json.loads(line) for line in (folder / "run-2/corpus/rejects.jsonl").read_text().splitlines()]
    assert {"earlier"} == {reason["kind"] for reason in reasons}
    assert any("kept for validation or test by" in reason["reason"] for reason in reasons)
    roles = {source["role"] for source in json.loads((folder / "run-2/corpus/sources.json").read_text())}
    assert roles == {"train", "earlier"}
    assert all(document.source for document in iter_documents(artifacts[2], "validation"))


def test_it_is_up_to_date_until_the_corpus_before_changes(chain, tmp_path):
    folder, _, artifacts = chain
    assert build(folder, 2).digest == artifacts[2].digest
    with pytest.raises(IncompatibleError, match="append_to"):
        build(folder, 2, append_to=str(folder / "run-0"))
    assert "append_to" not in artifacts[0].manifest["config"]  # corpora of before have the keys they had


def test_what_does_not_fit_is_refused(chain, tmp_path):
    folder, *_ = chain
    with pytest.raises(IncompatibleError, match="unicode_form") as refused:
        build(folder, 1, unicode_form="NFKC")
    assert refused.value.hint == "corpus.unicode_form=NFC"
    with pytest.raises(IntegrityError, match="does not exist"):
        build(folder, 1, append_to=str(tmp_path))
    with pytest.raises(ValueError, match="leave out validation_inputs"):
        CorpusConfig(append_to="x", validation_inputs=("y",))
    with pytest.raises(DataError, match="the train split is empty"):  # nothing is new
        build_corpus(
            CorpusConfig(inputs=(str(folder / "day-0.txt"),), append_to=str(folder / "run-0")),
            tmp_path / "run",
        )
    with pytest.raises(ConfigError, match=r"corpus\.inputs is empty"):
        build_corpus(CorpusConfig(append_to=str(folder / "run-0")), tmp_path / "run")
