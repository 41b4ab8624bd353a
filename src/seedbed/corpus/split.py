"""Decide from a document's text alone which split it belongs to.

The place is a hash of the normalised text, so it depends on no other document: adding text never moves a document, and
equal documents always share a split.
"""

from __future__ import annotations

import xxhash

__all__ = ["document_hash", "split_position"]


def document_hash(text: str) -> bytes:
    """Return the 16-byte xxh3 hash of the UTF-8 bytes of a normalised text."""
    return xxhash.xxh3_128_digest(text.encode("utf-8"))


def split_position(digest: bytes, seed: int) -> float:
    """Return where a document stands in [0, 1), uniform over documents; another seed gives an unrelated place."""
    # 53 bits are what a float64 holds exactly, so the result is never rounded up to 1.
    return (xxhash.xxh3_64_intdigest(digest, seed=seed) >> 11) / (1 << 53)
