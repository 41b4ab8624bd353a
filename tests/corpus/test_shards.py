"""Shards: what is written is read back, in bounded pieces."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seedbed.corpus.shards import ShardWriter, read_shard
from seedbed.corpus.split import document_hash
from seedbed.document import Document

_texts = st.lists(
    st.lists(
        st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20), min_size=1, max_size=4
    ),
    max_size=30,
)


@given(_texts)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_come_back_in_order(tmp_path: Path, texts: list[list[str]]) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    documents = [
        Document("\n".join(t.replace("\n", " ") for t in lines), f"s{i % 3}", tuple(range(i, i + len(lines))))
        for i, lines in enumerate(texts)
    ]
    with ShardWriter(tmp_path, "train", shard_bytes=200, group_bytes=50) as writer:
        for i, document in enumerate(documents):
            writer.add(document.text, i % 3, document.line_numbers, document_hash(document.text))
    files = sorted(tmp_path.iterdir())
    assert [d for f in files for d in read_shard(f, ["s0", "s1", "s2"])] == documents
    assert writer.counts() == {
        "documents": len(documents),
        "lines": sum(len(d.line_numbers) for d in documents),
        "characters": sum(len(d.text) for d in documents),
        "bytes": sum(len(d.text.encode()) for d in documents),
    }


def test_groups_and_shards_are_bounded(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", shard_bytes=10_000, group_bytes=2_000) as writer:
        for i in range(300):
            writer.add(f"{i:04d}" * 25, 0, (i + 1,), b"\0" * 16)
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]
    for file in files:
        metadata = pq.ParquetFile(file).metadata
        assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == [20] * 5
