"""Finding files: folders, globs, links, names, and what is not a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from seedbed.corpus.rejects import Reject
from seedbed.corpus.sources import find_sources, is_whole_zstd
from seedbed.errors import DataError


def _names(*inputs: str, rejects: list[Reject] | None = None) -> list[str]:
    report = (rejects if rejects is not None else []).append
    return [source.name for source in find_sources(inputs, format="auto", report=report)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.txt",
        "a.jsonl.gz",
        "sub/c.txt",
        "sub/deep/d.CSV",
        ".hidden.txt",
        ".git/e.txt",
        "README.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return tmp_path


def test_folders_are_walked_sorted_and_without_hidden_entries(tree: Path) -> None:
    rejects: list[Reject] = []
    assert _names(str(tree), rejects=rejects) == ["a.jsonl.gz", "b.txt", "sub/c.txt", "sub/deep/d.CSV"]
    assert [(r.file, r.line, r.kind) for r in rejects] == [("README.md", 0, "unknown_format")]


def test_globs_are_relative_to_their_fixed_part(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _names(f"{tree}/sub/**/*.txt") == ["c.txt"]
    assert _names(f"{tree}/**/*.[cC][sS][vV]") == ["sub/deep/d.CSV"]
    monkeypatch.chdir(tree)
    assert _names("*.txt") == ["b.txt"]
    assert _names("su*") == ["sub/c.txt", "sub/deep/d.CSV"]


def test_home_is_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert _names("~/b.txt") == ["b.txt"]


def test_a_file_named_twice_is_read_once(tree: Path) -> None:
    (tree / "again.txt").symlink_to("b.txt")
    assert _names(str(tree / "b.txt"), str(tree / "*.txt"), str(tree / "sub" / ".." / "b.txt")) == [
        "again.txt"
    ]
    assert _names(str(tree / "sub"), str(tree)) == _names(str(tree), str(tree / "sub"))


def test_equal_names_in_two_inputs_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    both = [str(tmp_path / "one" / "x.txt"), str(tmp_path / "two" / "x.txt")]
    assert _names(*both) == both


def test_links_in_a_circle_end(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    listed: list[str] = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (listed.append(path), real(path))[1])
    assert _names(str(tree)) == ["a.jsonl.gz", "b.txt", "sub/c.txt", "sub/deep/d.CSV"]
    assert len(listed) == 3


@pytest.mark.parametrize("given", ["nothing.txt", "*.nothing", "empty"])
def test_an_input_that_matches_nothing_is_an_error(tree: Path, given: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=r"is an empty folder|matches no file"):
        _names(str(tree / "b.txt"), str(tree / given))


def test_a_file_without_permission_is_reported(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "b.txt"
    )  # the tests may run as root
    rejects: list[Reject] = []
    assert "b.txt" not in _names(str(tree), rejects=rejects)
    assert ("b.txt", "unreadable") in [(r.file, r.kind) for r in rejects]


@pytest.mark.parametrize("checksum", [False, True])
def test_a_zstd_file_is_whole_only_at_frame_ends(tmp_path: Path, checksum: bool) -> None:
    compress = zstandard.ZstdCompressor(write_checksum=checksum).compress
    skippable = b"\x53\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    frames = [
        compress(b"text " * 50_000),
        skippable,
        compress(os.urandom(200_000)),
        compress(b"a" * 400_000),
        compress(b""),
    ]
    ends = {sum(map(len, frames[:n])) for n in range(len(frames) + 1)}
    data = b"".join(frames)
    path = tmp_path / "a.zst"
    for size in {*ends, *range(1, 60), *range(len(data) - 30, len(data)), *range(100, len(data), 9973)}:
        path.write_bytes(data[:size])
        with path.open("rb") as raw:
            assert is_whole_zstd(raw) == (size in ends), size
