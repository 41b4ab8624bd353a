import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.data.order import KeyedPermutation, place_of


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_it_is_a_permutation(size, key):
    out = KeyedPermutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(out), np.arange(size))


def test_any_place_alone_equals_the_whole():
    permutation = KeyedPermutation(100_003, 42)
    whole = permutation(np.arange(100_003))
    some = np.array([0, 5, 99_999, 100_002])
    assert np.array_equal(permutation(some), whole[some])


def test_keys_give_unrelated_orders():
    size = 20_000
    a, b = (KeyedPermutation(size, key)(np.arange(size)) for key in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(np.corrcoef(a, np.arange(size))[0, 1]) < 0.03
    assert (a == b).sum() < 10


def test_small_orders_are_close_to_uniform():
    """Each of the 24 orders of four rows comes up about equally often over keys."""
    counts: dict[tuple[int, ...], int] = {}
    for key in range(4800):
        order = tuple(KeyedPermutation(4, key * 2654435761)(np.arange(4)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert max(counts.values()) < 300
    assert min(counts.values()) > 120


def test_huge_sizes_need_no_memory():
    permutation = KeyedPermutation(10**13, 9)
    out = permutation(np.array([0, 1, 10**13 - 1]))
    assert len(set(out.tolist())) == 3
    assert (out < 10**13).all()


def test_an_empty_permutation_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        KeyedPermutation(0, 1)


def test_place_of():
    epoch, place = place_of(np.array([0, 9, 10, 25]), 10)
    assert epoch.tolist() == [0, 0, 1, 2]
    assert place.tolist() == [0, 9, 0, 5]
