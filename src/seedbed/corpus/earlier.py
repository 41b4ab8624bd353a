"""Know the corpus that another one continues: what it has trained on and what it keeps for validation and test.

`earlier.bin` of an appended corpus holds the 16-byte hashes of every document that a corpus before it has trained on, sorted,
so that a chain of any length knows them all by opening its last link.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seedbed.artifact import Artifact, open_verified
from seedbed.corpus.shards import read_hashes, read_shard
from seedbed.corpus.split import document_hash
from seedbed.document import Document
from seedbed.errors import IncompatibleError

__all__ = ["EARLIER", "Earlier", "open_earlier", "write_hashes"]

EARLIER = "earlier.bin"
_HASH_BYTES = 16
_HELD_OUT = ("validation", "test")


@dataclass(frozen=True, slots=True)
class Earlier:
    """Hold what a corpus must know of the one it continues.

    Attributes:
        artifact: the corpus before.
        trained: hashes of all documents in a training split so far; about 70 bytes of memory each.
        held_out: hashes of the documents of its validation and test splits.
        sources: entries of its `sources.json`.
    """

    artifact: Artifact
    trained: frozenset[bytes]
    held_out: frozenset[bytes]
    sources: Sequence[dict[str, str]]

    def documents(self, split: str) -> Iterator[tuple[Document, int, bytes]]:
        """Yield the documents of a split with the index of their source and their hash."""
        names = [source["name"] for source in self.sources]
        index = {name: number for number, name in enumerate(names)}
        for name in _shards(self.artifact, split):
            for document in read_shard(self.artifact.file(name), names):
                yield document, index[document.source], document_hash(document.text)


def open_earlier(run: Path, *, unicode_form: str) -> Earlier:
    """Open the corpus of a run to continue it.

    Raises:
        IntegrityError: there is none, or it is damaged.
        IncompatibleError: its text was normalised in another way, so that equal documents would not be recognised.
    """
    artifact = open_verified(run / "corpus", stage="corpus")
    found = artifact.manifest["config"]["unicode_form"]
    if found != unicode_form:
        raise IncompatibleError(
            f"{run} has corpus.unicode_form={found}, this recipe {unicode_form}: equal documents would look different.",
            hint=f"corpus.unicode_form={found}",
        )
    trained = {digest for name in _shards(artifact, "train") for digest in read_hashes(artifact.file(name))}
    if EARLIER in artifact.files:
        data = artifact.file(EARLIER).read_bytes()
        trained |= {data[at : at + _HASH_BYTES] for at in range(0, len(data), _HASH_BYTES)}
    held_out = {
        digest
        for split in _HELD_OUT
        for name in _shards(artifact, split)
        for digest in read_hashes(artifact.file(name))
    }
    sources = json.loads(artifact.file("sources.json").read_bytes())
    return Earlier(artifact, frozenset(trained), frozenset(held_out), sources)


def write_hashes(hashes: frozenset[bytes], path: Path) -> None:
    """Write hashes, sorted."""
    path.write_bytes(b"".join(sorted(hashes)))


def _shards(artifact: Artifact, split: str) -> list[str]:
    return [name for name in artifact.files if name.startswith(f"{split}-") and name.endswith(".parquet")]
