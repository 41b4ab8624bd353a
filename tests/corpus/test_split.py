"""Splits: a function of the text alone, uniform, independent between seeds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seedbed.corpus.split import document_hash, split_position


@given(st.text(st.characters(blacklist_categories=("Cs",))), st.integers(0, 2**64 - 1))
def test_position_is_in_the_unit_interval_and_fixed(text: str, seed: int) -> None:
    position = split_position(document_hash(text), seed)
    assert 0.0 <= position < 1.0
    assert position == split_position(document_hash(text), seed)


def test_known_values_never_change() -> None:
    # Splits of corpora that exist must not move with a release of ours or of the hash library.
    assert document_hash("").hex() == "99aa06d3014798d86001c324468d497f"
    assert document_hash("a 中").hex() == "3b0bce0d0ea545731bb29879657aa640"
    assert split_position(document_hash("a 中"), 7) == 0.6666950708928929


def test_positions_are_uniform_and_unrelated_between_seeds() -> None:
    digests = [document_hash(f"document {i}") for i in range(20_000)]
    a = np.array([split_position(d, 0) for d in digests])
    b = np.array([split_position(d, 1) for d in digests])
    counts, _ = np.histogram(a, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
