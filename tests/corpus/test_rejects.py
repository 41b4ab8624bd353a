"""The list of rejects and its page in the docs say the same."""

from __future__ import annotations

import re
from pathlib import Path

from seedbed.corpus.rejects import KINDS, Reject, summary


def test_the_docs_name_every_kind_under_its_level() -> None:
    page = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")
    table = page.split("## What is left out")[1].split("\n## ")[0]
    found: dict[str, str] = {}
    level = ""
    for row in table.split("\n"):
        if heading := re.match(r"\| \*\*(\w+)s\*\*", row):
            level = heading[1]
        elif kind := re.match(r"\| `(\w+)` \|", row):
            found[kind[1]] = level
    assert found == KINDS


def test_a_reject_reads_as_a_sentence_and_as_json() -> None:
    line, file = (
        Reject("a.txt", 3, "nul_byte", "holds a NUL", byte_offset=7),
        Reject("b.txt", 0, "empty_file", "empty"),
    )
    assert summary([line, file]) == "a.txt, line 3: holds a NUL; b.txt: empty"
    assert Reject(**line.as_json()) == line
    assert "byte_offset" not in file.as_json()
    assert not Reject("a", 1, "duplicate", "").is_fault
