import torch

from seedbed.hashing import fold, key_from, mix, threshold


def test_mix_is_a_bijection_on_a_sample():
    x = torch.arange(-50_000, 50_000, dtype=torch.int32)
    assert mix(x).unique().numel() == x.numel()


def test_mix_equals_the_published_function():
    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    values = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1, 0xDEADBEEF]
    signed = torch.tensor([v - 2**32 if v >= 2**31 else v for v in values], dtype=torch.int32)
    assert [int(v) & 0xFFFFFFFF for v in mix(signed)] == [lowbias32(v) for v in values]


def test_a_value_folds_alike_as_int_int32_and_int64():
    key = key_from("test", 7)
    for value in (0, 1, 77, 2**31 - 1):
        as_int = fold(key, value)
        assert torch.equal(as_int, fold(key, torch.tensor(value, dtype=torch.int32)))
        assert torch.equal(as_int, fold(key, torch.tensor(value, dtype=torch.int64)))
    large = 2**31 + 5
    assert torch.equal(fold(key, large), fold(key, torch.tensor(large, dtype=torch.int64)))
    assert not torch.equal(fold(key, large), fold(key, 5))


def test_bits_are_frozen():
    """Order, masks and dropout of every run ever made depend on these values."""
    assert int(key_from(0, "windows")) == 1059799574
    assert int(fold(key_from(3, "dropout"), 1000)) == 703672322


def test_draws_are_uniform():
    draws = fold(key_from("uniform"), torch.arange(1_000_000, dtype=torch.int32))
    for probability in (0.1, 0.5, 0.8):
        share = (draws < threshold(probability)).double().mean().item()
        assert abs(share - probability) < 0.002
    bits = torch.stack([(draws >> shift) & 1 for shift in range(32)]).double().mean(dim=1)
    assert (bits - 0.5).abs().max() < 0.003


def test_neighbouring_keys_and_positions_are_uncorrelated():
    position = torch.arange(100_000, dtype=torch.int32)
    a = fold(key_from("a"), position).double()
    for other in (
        fold(key_from("b"), position).double(),
        a.roll(1),
        fold(fold(key_from("a"), 1), position).double(),
    ):
        assert abs(torch.corrcoef(torch.stack([a, other]))[0, 1]) < 0.01
