"""The corpora that ship: complete, clean, and without rejects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from seedbed.corpus.bundled import bundled_corpus
from seedbed.corpus.pipeline import read_documents
from seedbed.corpus.rejects import Reject


@pytest.mark.parametrize(("language", "files", "documents"), [("en", 6, 110), ("zh", 2, 160)])
def test_bundled_corpora_read_without_a_reject(
    language: Literal["en", "zh"], files: int, documents: int
) -> None:
    rejects: list[Reject] = []
    found = list(read_documents([str(bundled_corpus(language))], rejects=rejects))
    assert rejects == []
    assert (len({d.source for d in found}), len(found)) == (files, documents)
    assert (Path(bundled_corpus(language)).parent / "NOTICE.md").is_file()


@pytest.mark.data
@pytest.mark.parametrize("language", ["en", "zh"])
def test_bundled_corpora_equal_their_origin(language: Literal["en", "zh"], data_dir: Path) -> None:
    ours = [d.text for d in read_documents([str(bundled_corpus(language))])]
    assert ours == [d.text for d in read_documents([str(data_dir / f"demo-{language}")])]
