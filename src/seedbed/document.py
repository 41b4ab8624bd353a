"""Say what a document is: the unit that cleaning, splitting and tokenizing pass along.

Here is only the value. Reading files lives in `corpus/readers.py`, cleaning in `corpus/pipeline.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SPLITS", "Document"]

SPLITS = ("train", "validation", "test")
"""The splits of a corpus, in the order in which stages write them."""


@dataclass(frozen=True, slots=True)
class Document:
    r"""One piece of raw or clean text and where it came from.

    Attributes:
        text: the text. Lines are separated by a newline; a line never crosses a paragraph.
        source: the file it was read from, relative to the input the user named.
        line_numbers: for each line of `text`, its 1-based physical line (for Parquet: row) in `source`, counted
            in the decompressed file. `len(line_numbers) == text.count("\\n") + 1`.
    """

    text: str
    source: str
    line_numbers: tuple[int, ...]
