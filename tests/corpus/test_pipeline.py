"""The stage as a whole: what is kept, where it goes, and that the same input gives the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.artifact import Artifact
from seedbed.config import commented_yaml
from seedbed.corpus.pipeline import CorpusConfig, build_corpus, iter_documents, read_documents
from seedbed.corpus.rejects import Reject
from seedbed.corpus.sources import find_sources
from seedbed.document import SPLITS
from seedbed.errors import ConfigError, DataError, IncompatibleError

WORDS = [
    "the",
    "river",
    "ran",
    "slow",
    "and",
    "grey",
    "under",
    "low",
    "sky",
    "话说",
    "天下",
    "大势",
    "分久",
    "必合",
]


def _write_texts(folder: Path, num_documents: int = 200, *, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    documents = [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 30))) for i in range(num_documents)]
    for part in range(4):
        (folder / f"part{part}.txt").write_text("\n\n".join(documents[part::4]) + "\n", encoding="utf-8")
    return documents


def _texts(artifact: Artifact, split: str) -> list[str]:
    return [d.text for d in iter_documents(artifact, split)]


def _rejects(artifact: Artifact) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for line in artifact.file("rejects.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


def test_every_document_is_kept_once_and_counted(tmp_path: Path) -> None:
    documents = _write_texts(tmp_path / "in")
    config = CorpusConfig(inputs=(str(tmp_path / "in"),), validation_fraction=0.2, test_fraction=0.1)
    artifact = build_corpus(config, tmp_path / "run")
    artifact.verify()
    splits = {split: _texts(artifact, split) for split in SPLITS}
    assert sorted(t for texts in splits.values() for t in texts) == sorted(documents)
    assert 20 <= len(splits["validation"]) <= 60
    assert 5 <= len(splits["test"]) <= 40
    for split, texts in splits.items():
        counts = artifact.counts["splits"][split]
        assert counts["documents"] == len(texts)
        assert counts["characters"] == sum(map(len, texts))
        assert counts["bytes"] == sum(len(t.encode()) for t in texts)
    assert artifact.counts["faults"] == artifact.counts["duplicates"] == 0
    assert 0.0 < artifact.counts["han_fraction"] < 1.0


def test_the_trail_leads_to_the_physical_line(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    (tmp_path / "in" / "odd.txt").write_bytes(b"\n\n \na\n\xff\n  b\t b\n\nc\n")
    artifact = build_corpus(CorpusConfig(inputs=(str(tmp_path / "in"),)), tmp_path / "run")
    for split in SPLITS:
        for document in iter_documents(artifact, split):
            lines = (tmp_path / "in" / document.source).read_bytes().split(b"\n")
            for number, text in zip(document.line_numbers, document.text.split("\n"), strict=True):
                assert " ".join(lines[number - 1].decode().split()) == text
    odd = [d for s in SPLITS for d in iter_documents(artifact, s) if d.source == "odd.txt"]
    assert {(d.text, d.line_numbers) for d in odd} == {("a\nb b", (4, 6)), ("c", (8,))}


@given(st.lists(st.integers(0, 500), max_size=40), st.lists(st.integers(0, 500), max_size=40))
@settings(max_examples=10, deadline=None)
def test_splits_do_not_move_when_text_is_added(first: list[int], more: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        anchors = [f"anchor {i}" for i in range(40)]  # keeps every split from being empty
        places: list[dict[str, str]] = []
        for step, numbers in enumerate((first, first + more)):
            path = folder / f"{step}.txt"
            path.write_text("\n".join([f"text {n}" for n in numbers] + anchors), encoding="utf-8")
            config = CorpusConfig(
                inputs=(str(path),),
                documents="line",
                validation_fraction=0.3,
                test_fraction=0.3,
                split_seed=5,
            )
            artifact = build_corpus(config, folder / f"run{step}")
            places.append({text: split for split in SPLITS for text in _texts(artifact, split)})
        assert places[0].items() <= places[1].items()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    (tmp_path / "in" / "bad.txt").write_bytes(b"fine\n\xff\n")
    program = (
        "import os, sys\n"
        "real = os.listdir\n"
        "if sys.argv[3] == 'reversed': os.listdir = lambda p: sorted(real(p), reverse=True)\n"
        "from pathlib import Path\n"
        "from seedbed.corpus.pipeline import CorpusConfig, build_corpus\n"
        "print(build_corpus(CorpusConfig(inputs=(sys.argv[1],)), Path(sys.argv[2])).digest)\n"
    )
    digests = set()
    for i, (seed, order) in enumerate([("0", "plain"), ("1", "reversed"), ("77", "plain")]):
        command = [sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / f"run{i}"), order]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C"}
        digests.add(
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        )
    parts = tuple(
        str(tmp_path / "in" / n) for n in ("part3.txt", "bad.txt", "part0.txt", "part2.txt", "part1.txt")
    )
    digests.add(build_corpus(CorpusConfig(inputs=parts), tmp_path / "run-parts").digest + "\n")
    assert len(digests) == 1


def test_duplicates_and_short_documents_are_left_out_and_listed(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    (tmp_path / "in" / "a.txt").write_text(
        "the same  text\n\nunique one\n\nab\n\nthe\u3000same text\n", encoding="utf-8"
    )
    (tmp_path / "in" / "b.txt").write_text("\n\nthe same text\n", encoding="utf-8")
    config = CorpusConfig(inputs=(str(tmp_path / "in"),), min_characters=3)
    artifact = build_corpus(config, tmp_path / "run", strict=True)  # by design, not faults
    assert artifact.counts["documents_read"] == 205
    assert artifact.counts["rejects"] == {"duplicate": 2, "short": 1}
    assert sum(artifact.counts["splits"][s]["documents"] for s in SPLITS) == 202
    assert [(r["file"], r["line"], r["kind"]) for r in _rejects(artifact)] == [
        ("a.txt", 5, "short"),
        ("a.txt", 7, "duplicate"),
        ("b.txt", 3, "duplicate"),
    ]
    assert "a.txt, line 1" in str(_rejects(artifact)[1]["reason"])
    kept = build_corpus(config.updated(deduplicate=False), tmp_path / "all")
    assert sum(kept.counts["splits"][s]["documents"] for s in SPLITS) == 204


@pytest.mark.parametrize("deduplicate", [True, False])
def test_own_validation_files_never_leak_into_training(tmp_path: Path, deduplicate: bool) -> None:
    documents = _write_texts(tmp_path / "in")
    (tmp_path / "valid").mkdir()
    own = [*documents[:7], "held out text"]
    (tmp_path / "valid" / "part0.txt").write_text(
        "\n\n".join(own), encoding="utf-8"
    )  # a name the inputs have too
    config = CorpusConfig(
        inputs=(str(tmp_path / "in"),),
        validation_inputs=(str(tmp_path / "valid"),),
        validation_fraction=0.5,
        deduplicate=deduplicate,
    )
    artifact = build_corpus(config, tmp_path / "run")
    assert _texts(artifact, "validation") == own
    assert sorted(_texts(artifact, "train")) == sorted(documents[7:])
    assert artifact.counts["rejects"] == {"in_validation": 7}
    assert len({d.source for s in SPLITS for d in iter_documents(artifact, s)}) == 5


@pytest.mark.parametrize("length", [1, 2, 7, 20])
def test_long_documents_are_cut_at_line_ends_and_nothing_is_lost(tmp_path: Path, length: int) -> None:
    lines = [f"{i % 10}" + "字" * length for i in range(3000 // length)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    config = CorpusConfig(inputs=("x",), documents="file", max_line_bytes=100, max_document_bytes=1000)
    rejects: list[Reject] = []
    documents = list(read_documents([str(tmp_path / "a.txt")], config, rejects=rejects))
    assert "\n".join(d.text for d in documents).split("\n") == lines
    assert max(len(d.text.encode()) for d in documents) <= 1000
    assert min(len(d.text.encode()) for d in documents[:-1]) > 1000 - 3 * length - 3
    assert [(r.kind, r.line) for r in rejects] == [("cut", d.line_numbers[0]) for d in documents[1:]]
    assert not any(r.is_fault for r in rejects)


def test_rejects_are_listed_and_strict_publishes_nothing(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    (tmp_path / "in" / "bad.txt").write_bytes(b"fine\n\xff\n\0\nfine too\n")
    (tmp_path / "in" / "notes.docx").write_bytes(b"PK")
    config = CorpusConfig(inputs=(str(tmp_path / "in"),))
    with pytest.raises(DataError, match=r"3 lines or files were rejected.*notes\.docx.*bad\.txt, line 2"):
        build_corpus(config, tmp_path / "run", strict=True)
    assert not (tmp_path / "run" / "corpus").exists()
    assert list((tmp_path / "run" / ".stages").iterdir()) == []
    artifact = build_corpus(config, tmp_path / "run")
    assert artifact.counts["faults"] == 3
    assert artifact.counts["rejects"] == {"invalid_utf8": 1, "nul_byte": 1, "unknown_format": 1}
    assert [(r["file"], r["line"]) for r in _rejects(artifact)] == [
        ("notes.docx", 0),
        ("bad.txt", 2),
        ("bad.txt", 3),
    ]
    listed = r"3 lines or files.*bad\.txt, line 2: not valid UTF-8"
    with pytest.raises(DataError, match=listed):  # also when the stage is up to date
        build_corpus(config, tmp_path / "run", strict=True)


def test_the_stage_runs_again_only_when_something_changed(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    config = CorpusConfig(inputs=(str(tmp_path / "in"),))
    first = build_corpus(config, tmp_path / "run")
    written = (first.path / "manifest.json").stat().st_mtime_ns
    again = build_corpus(config, tmp_path / "run")
    assert (again.path / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(IncompatibleError, match=r"min_characters 1 -> 9"):
        build_corpus(config.updated(min_characters=9), tmp_path / "run")
    with (tmp_path / "in" / "part0.txt").open("a") as file:
        file.write("\n\nmore text\n")
    with pytest.raises(IncompatibleError, match=r"input train part0\.txt"):
        build_corpus(config, tmp_path / "run")
    assert build_corpus(config, tmp_path / "run", replace=True).digest != first.digest


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses such names")
def test_file_names_may_be_anything(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"odd name\n\xff\n")
    (tmp_path / "in" / "two\nlines \u2028.txt").write_bytes(b"odder name\n\xff\n")
    artifact = build_corpus(CorpusConfig(inputs=(str(tmp_path / "in"),)), tmp_path / "run")
    assert [r["file"] for r in _rejects(artifact)] == ["caf\\xe9.txt", "two\nlines \u2028.txt"]
    with pytest.raises(DataError, match="2 lines or files"):
        build_corpus(CorpusConfig(inputs=(str(tmp_path / "in"),)), tmp_path / "run", strict=True)


def test_sources_carry_the_digest_of_each_file(tmp_path: Path) -> None:
    import hashlib

    _write_texts(tmp_path / "in")
    artifact = build_corpus(CorpusConfig(inputs=(str(tmp_path / "in"),)), tmp_path / "run")
    for entry in json.loads(artifact.file("sources.json").read_bytes()):
        data = (tmp_path / "in" / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_file_that_changes_while_it_is_read_stops_the_stage(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    path = tmp_path / "in" / "part1.txt"

    def meddle(phase: str, *, done: int, total: int | None, unit: str) -> None:
        if phase == "reading":
            path.write_text("shorter")

    with pytest.raises(DataError, match=r"part1\.txt changed while it was read"):
        build_corpus(CorpusConfig(inputs=(str(tmp_path / "in"),)), tmp_path / "run", progress=meddle)
    assert not (tmp_path / "run" / "corpus").exists()


def test_progress_never_goes_back_and_ends_at_the_total(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in", 3000)
    seen: list[tuple[int, int | None]] = []

    def listen(phase: str, *, done: int, total: int | None, unit: str) -> None:
        if phase == "reading":
            seen.append((done, total))

    build_corpus(CorpusConfig(inputs=(str(tmp_path / "in"),)), tmp_path / "run", progress=listen)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(p.stat().st_size for p in (tmp_path / "in").iterdir())
    assert len(seen) > 4


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"\xff\n\xfe\xff\n", {}, r"no document was kept.*a\.txt"),
        (b"one document only", {"validation_fraction": 0.5, "split_seed": 1}, r"split is empty"),
        (b"ab\n\ncd", {"min_characters": 5}, r"no document was kept \(2 short\)"),
    ],
)
def test_nothing_to_train_on_is_an_error(
    tmp_path: Path, content: bytes, changes: dict[str, object], message: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        build_corpus(CorpusConfig(inputs=(str(tmp_path / "a.txt"),)).updated(**changes), tmp_path / "run")
    assert caught.value.hint
    assert not (tmp_path / "run" / "corpus").exists()


def test_only_unreadable_inputs_is_an_error_naming_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt: the file is empty"):
        build_corpus(CorpusConfig(inputs=(str(tmp_path / "a.txt"),)), tmp_path / "run")


def test_config_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"corpus\.inputs is empty"):
        build_corpus(CorpusConfig(), Path("nowhere"))
    with pytest.raises(ValueError, match="leave something for training"):
        CorpusConfig(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="max_document_bytes"):
        CorpusConfig(max_document_bytes=100)
    assert all(field.description for field in CorpusConfig.model_fields.values())
    assert "validation_fraction" in commented_yaml(CorpusConfig())


def test_reading_one_source_again_gives_what_the_corpus_holds(tmp_path: Path) -> None:
    _write_texts(tmp_path / "in")
    inputs = (str(tmp_path / "in"),)
    artifact = build_corpus(CorpusConfig(inputs=inputs), tmp_path / "run")
    kept = sorted(text for split in SPLITS for text in _texts(artifact, split))
    assert kept == sorted(d.text for d in read_documents(inputs))
    names = [s.name for s in find_sources(inputs, format="auto", report=lambda _: None)]
    assert names == [s["name"] for s in json.loads(artifact.file("sources.json").read_bytes())]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "language", "documents"), [("wiki-en", "en", 1061), ("wiki-zh", "zh", 7027)]
)
def test_development_corpora_are_clean(
    tmp_path: Path, data_dir: Path, name: str, language: str, documents: int
) -> None:
    artifact = build_corpus(CorpusConfig(inputs=(str(data_dir / name),)), tmp_path, strict=True)
    assert artifact.counts["language"] == language
    assert (
        sum(artifact.counts["splits"][s]["documents"] for s in SPLITS) + artifact.counts["duplicates"]
        == documents
    )
