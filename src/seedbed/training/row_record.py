"""Write down which rows each step read, so that two runs can be compared row by row (`training.record_rows`, `seedbed prove`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import xxhash
from torch import Tensor

from seedbed.artifact import write_text
from seedbed.batch import Targets
from seedbed.errors import disk_errors
from seedbed.training.step import MicroBatch

__all__ = ["RowRecord", "row_digests"]


class RowRecord:
    """Append a line for each row: the window that read it, its entry, its number, and a hash of all that is read and predicted.

    Args:
        folder: of the pretraining; each worker has a file `rows-<worker>-of-<workers>.jsonl`.
        worker: which one this is.
        num_workers: how many there are.
    """

    def __init__(self, folder: Path, *, worker: int, num_workers: int) -> None:
        self.path = folder / f"rows-{worker}-of-{num_workers}.jsonl"

    @staticmethod
    def cut(folder: Path, window: int) -> None:
        """Drop the lines of windows that a resumed run will do again, from all workers' files; one worker does it."""
        for path in folder.glob("rows-*.jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if _is_before(line, window)]
            with disk_errors(path, doing="writing"):
                write_text(path, "".join(kept))  # killed here, it is the old list or the new one

    @staticmethod
    def read(folder: Path) -> dict[int, list[tuple[int, int, str]]]:
        """Return the sorted (entry, row, hash) of each window, over all workers."""
        rows: dict[int, list[tuple[int, int, str]]] = {}
        for path in sorted(folder.glob("rows-*.jsonl")):
            for text in path.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                rows.setdefault(line["window"], []).append((line["entry"], line["row"], line["digest"]))
        return {window: sorted(rows[window]) for window in sorted(rows)}

    def add(self, window: int, micro_batches: Sequence[MicroBatch]) -> None:
        """Write the rows of a window that this worker reads."""
        lines = []
        for micro in micro_batches:
            if micro.is_filler or micro.batch.row_ids is None:
                continue
            for row, digest in zip(micro.batch.row_ids.tolist(), row_digests(micro), strict=True):
                line = {"window": window, "entry": micro.entry, "row": row, "digest": digest}
                lines.append(json.dumps(line) + "\n")
        with disk_errors(self.path, doing="writing"), self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)


def _is_before(line: str, window: int) -> bool:
    """Say whether a line is of an earlier window; one that a full disk or a kill cut short is of none."""
    try:
        return line.endswith("\n") and int(json.loads(line)["window"]) < window
    except (ValueError, KeyError, TypeError):
        return False


def row_digests(micro: MicroBatch) -> list[str]:
    """Return a hash of each row: its own slices of the batch's tensors, and its targets with their places; padding left out."""
    batch = micro.batch
    hashes = [xxhash.xxh3_64() for _ in range(batch.input_ids.shape[0])]
    for name in ("input_ids", "token_type_ids", "position_ids", "attend_order", "segment_ids"):
        _add_rows(hashes, name, getattr(batch, name), batch.segment_ids)
    for name in ("decoder_input_ids", "decoder_position_ids", "decoder_segment_ids"):
        _add_rows(hashes, name, getattr(batch, name), batch.decoder_segment_ids)
    _add_rows(hashes, "query_at", batch.query_at, None)
    widths = {
        "input": batch.input_ids.shape[1],
        "decoder": 0 if batch.decoder_input_ids is None else batch.decoder_input_ids.shape[1],
        "query": 0 if batch.query_at is None else batch.query_at.shape[1],
    }
    for term, target in sorted(micro.targets.items()):
        _add_targets(hashes, term, target, widths[target.stream])
    return [own.hexdigest() for own in hashes]


def _add_rows(
    hashes: Sequence[xxhash.xxh3_64], name: str, values: Tensor | None, segments: Tensor | None
) -> None:
    """Add each row's real values; a batch without padding and one with it (its segments then given) hash alike."""
    if values is None:
        return
    for row, own in enumerate(hashes):
        there = values[row] if segments is None else values[row][segments[row] > 0]
        if name.endswith("segment_ids") and bool((there == 1).all()):
            continue  # what a batch without segments means
        own.update(f"{name}:{there.tolist()}".encode())


def _add_targets(hashes: Sequence[xxhash.xxh3_64], term: str, target: Targets, width: int) -> None:
    """Add each target to the hash of its row, in the order of places; a weight of 0 is padding."""
    weights = [1.0] * target.at.shape[0] if target.weights is None else target.weights.tolist()
    items = zip(target.at.tolist(), target.values.tolist(), weights, strict=True)
    for place, value, weight in sorted(items, key=lambda item: item[0]):
        if weight:
            hashes[place // width].update(f"{term}:{place % width}:{value}:{weight}".encode())
