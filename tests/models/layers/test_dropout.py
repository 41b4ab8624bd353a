"""The hash behind dropout: rates, independence, and dependence on the place alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seedbed.hashing import key_from
from seedbed.models.layers.dropout import Dropout, keep_mask

ROWS, LENGTH, WIDTH = 64, 128, 256


def kept(site: int = 1, *, rate: float = 0.1, key: int = 0, rows: Tensor | None = None) -> Tensor:
    """Return the mask (rows, LENGTH, WIDTH) as floats."""
    dropout = Dropout(
        key=key_from("test", key),
        row_ids=torch.arange(ROWS) if rows is None else rows,
        hidden_rate=rate,
        attention_rate=rate,
    )
    ones = torch.ones(len(dropout.row_ids), LENGTH, WIDTH)
    return (dropout.hidden(ones, site=site, places=dropout.places(torch.arange(LENGTH))) > 0).float()


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9])
def test_share_kept_and_scale(rate: float) -> None:
    mask = kept(rate=rate)
    count = mask.numel()
    sigma = (rate * (1 - rate) / count) ** 0.5
    assert abs(float(mask.mean()) - (1 - rate)) < 4 * sigma + 2**-16
    # Neither rows, positions nor channels are luckier than chance allows (5 sigma of a mean over the others).
    for dims in ((1, 2), (0, 2), (0, 1)):
        means = mask.mean(dims)
        bound = 5 * (rate * (1 - rate) * len(means) / count) ** 0.5
        assert (means - (1 - rate)).abs().max() < bound
    dropout = Dropout(key_from(1), torch.arange(2), rate, 0.0)
    values = dropout.hidden(torch.ones(2, 3, 8), site=0, places=dropout.places(torch.arange(3)))
    torch.testing.assert_close(values[values > 0], torch.full_like(values[values > 0], 1 / (1 - rate)))


def correlation(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two masks in units of its standard error."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) * a.numel() ** 0.5


def test_neighbours_sites_passes_and_rows_are_independent() -> None:
    mask = kept()
    for shift in (1, 2, 3, 64, 128):
        assert abs(correlation(mask[..., :-shift], mask[..., shift:])) < 5, f"channels {shift} apart"
    for shift in (1, 2, 32):
        assert abs(correlation(mask[:, :-shift], mask[:, shift:])) < 5, f"positions {shift} apart"
        assert abs(correlation(mask[:-shift], mask[shift:])) < 5, f"rows {shift} apart"
    assert abs(correlation(mask, kept(site=2))) < 5
    assert abs(correlation(mask, kept(key=1))) < 5
    assert abs(correlation(mask, kept(rows=torch.arange(ROWS) + (1 << 33)))) < 5


def test_no_rectangles() -> None:
    """Rows and channels enter by an exclusive or; were the scrambling linear, the corners of rectangles would agree."""
    mask = kept(rate=0.5)
    parity = mask[:, :-1, :-2] + mask[:, 1:, :-2] + mask[:, :-1, 2:] + mask[:, 1:, 2:]
    for total, share in ((0, 1 / 16), (1, 4 / 16), (2, 6 / 16), (3, 4 / 16), (4, 1 / 16)):
        # Overlapping corners make counts correlate; 10 sigma of independent ones is far below what linearity would do.
        sigma = (share * (1 - share) / parity.numel()) ** 0.5
        assert abs(float((parity == total).float().mean()) - share) < 10 * sigma


def test_a_value_depends_on_its_place_alone() -> None:
    dropout = Dropout(key_from(4), torch.tensor([3, 8, 9]), 0.3, 0.3)
    values = torch.rand(3, 20, 7) + 1
    places = dropout.places(torch.arange(20))
    whole = dropout.hidden(values, site=5, places=places)
    other = Dropout(key_from(4), torch.tensor([9, 3]), 0.3, 0.3)
    assert torch.equal(
        other.hidden(values[[2, 0]], site=5, places=other.places(torch.arange(20))), whole[[2, 0]]
    )
    at = torch.tensor([41, 0, 23])
    flat = dropout.hidden(values.flatten(0, 1)[at], site=5, places=places, at=at)
    assert torch.equal(flat, whole.flatten(0, 1)[at])
    columns = torch.tensor([[4, 9], [0, 1], [19, 2]])
    chosen = values.gather(1, columns[..., None].expand(-1, -1, 7))
    expected = whole.gather(1, columns[..., None].expand(-1, -1, 7))
    assert torch.equal(dropout.hidden(chosen, site=5, places=dropout.places(columns)), expected)


def test_attention_probabilities_are_dropped_by_head_query_and_key() -> None:
    dropout = Dropout(key_from(4), torch.arange(8), 0.0, 0.2)
    dropped = dropout.attention(torch.ones(8, 4, 64, 64), site=1)
    mask = (dropped > 0).float()
    assert abs(float(mask.mean()) - 0.8) < 0.005
    assert abs(correlation(mask[:, 0], mask[:, 1])) < 5
    assert abs(correlation(mask[:, :, 0], mask[:, :, 1])) < 5
    assert torch.equal(dropout.attention(torch.ones(8, 4, 40, 64), site=1), dropped[:, :, :40])


def test_bits_are_those_of_plain_integers() -> None:
    """The same hash in Python's integers: nothing depends on a device, and saved runs depend on these bits."""
    places, channels = torch.tensor([12345, -987654321]), torch.tensor([77, -2, 1 << 30])
    mask = keep_mask(places.int(), channels.int(), 6, 0.3)
    for row, place in enumerate(places.tolist()):
        for pair, channel in enumerate(channels.tolist()):
            h = ((place ^ channel) * 0x2C1B3C6D) & 0xFFFFFFFF
            h = h - (1 << 32) if h >= 1 << 31 else h
            h = ((h ^ (h >> 15)) * 0x297A2D39) & 0xFFFFFFFF
            for half in range(2):
                value = (h >> (16 * half)) & 0xFFFF
                value = value - 65536 if value >= 32768 else value
                assert bool(mask[row, 2 * pair + half]) == (value >= round(0.3 * 65536) - 32768)
    dropout = Dropout(key_from("golden"), torch.tensor([1, 1 << 35]), 0.5, 0.0)
    bits = (
        (dropout.hidden(torch.ones(2, 1, 24), site=3, places=dropout.places(torch.arange(1))) > 0)
        .int()
        .flatten(1)
    )
    assert ["".join(map(str, row)) for row in bits.tolist()] == GOLDEN


GOLDEN = ["010101100011001001111011", "111100010000011100001101"]
