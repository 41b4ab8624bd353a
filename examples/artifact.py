"""Publish and open an artifact. `docs/artifacts.md` shows the marked region; the tests run it.

usage: python examples/artifact.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path


def show(folder: Path) -> None:
    """Make an artifact, open it, and see a change refused."""
    # --8<-- [start:artifact]
    from seedbed.artifact import open_verified, publish
    from seedbed.errors import IntegrityError

    with publish(folder / "words", stage="words", version=1, config={"case": "lower"}) as draft:
        (draft.path / "words.txt").write_text("seed\nbed\n", encoding="utf-8")
        draft.counts = {"words": 2}

    artifact = open_verified(folder / "words", stage="words")
    print(artifact.counts, artifact.file("words.txt").read_text(encoding="utf-8").split())

    (folder / "words" / "words.txt").write_text("seed\nbad\n", encoding="utf-8")
    try:
        open_verified(folder / "words").verify()
    except IntegrityError as error:
        print(error)  # names the file, its sha256 and the one expected
    # --8<-- [end:artifact]


if __name__ == "__main__":
    show(Path(sys.argv[1]))
