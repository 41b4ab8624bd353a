"""Find the public-domain corpora that ship with the package, for the demo and for trying things out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["bundled_corpus"]


def bundled_corpus(language: Literal["en", "zh"]) -> Path:
    """Return the folder of the sample corpus: English children's and detective novels, or two Chinese classics.

    Files are `.txt.gz`, documents (chapters) separated by blank lines. NOTICE.md in the folder above says where the
    texts come from.
    """
    return Path(__file__).parent / "bundled" / language
