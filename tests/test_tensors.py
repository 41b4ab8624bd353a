import pytest
import torch
from safetensors import SafetensorError

from seedbed.errors import DiskError, IntegrityError, disk_errors
from seedbed.tensors import load_tensors, open_tensors, save_tensors, stream_order, stream_tensors


def test_round_trip_of_any_layout(tmp_path):
    tensors = {
        "a": torch.arange(6).reshape(2, 3).T,
        "b": torch.randn(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0),
    }
    save_tensors(tensors, tmp_path / "t")
    back = load_tensors(tmp_path / "t")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(tensors[k], back[k]) for k in tensors)


def test_a_full_disk_is_told_as_one(monkeypatch, tmp_path):
    """The library's own words, seen on a full tmpfs; the fault tier fills a real one."""

    def full_disk(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("seedbed.tensors.save_file", full_disk)
    with pytest.raises(DiskError, match="no space left"), disk_errors(tmp_path, doing="writing"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "t")


def test_damage_is_named(tmp_path):
    (tmp_path / "t").write_bytes(b"not tensors")
    with pytest.raises(IntegrityError, match="not a sound safetensors file"):
        load_tensors(tmp_path / "t")


def test_a_stream_is_the_file_of_all_at_once(tmp_path):
    """Byte for byte, whatever the types, asking for one tensor after the other."""
    chance = torch.Generator().manual_seed(0)
    tensors = {
        "b/weight": torch.randn(3, 5, generator=chance),
        "a": torch.randn(7, generator=chance).bfloat16(),
        "Z": torch.randn(2, generator=chance).half(),
        "step": torch.tensor(4.0),
        "long": torch.arange(3),
        "none": torch.zeros(0, 4),
        "flag": torch.tensor([True]),
        "whole": torch.arange(4, dtype=torch.int32).view(2, 2).T,
        "double \u96ea": torch.randn(1, generator=chance).double(),
        "byte": torch.arange(3, dtype=torch.uint8),
    }
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    asked = []
    stream_tensors(kinds, lambda name: asked.append(name) or tensors[name], tmp_path / "stream")
    save_tensors(tensors, tmp_path / "whole")
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "whole").read_bytes()
    assert asked == stream_order(kinds)
    assert sorted(asked) == sorted(tensors)


def test_rows_are_read_from_a_file_without_the_rest(tmp_path):
    weight = torch.randn(5, 3)
    save_tensors({"weight": weight, "step": torch.tensor(2.0)}, tmp_path / "t")
    with open_tensors(tmp_path / "t") as file:
        assert sorted(file.names) == ["step", "weight"]
        assert file.shape("weight") == (5, 3)
        assert torch.equal(file.read("weight"), weight)
        assert torch.equal(file.read("weight", slice(1, 4)), weight[1:4])
        assert file.read("weight", slice(5, 5)).shape == (0, 3)
        assert float(file.read("step")) == 2.0


def test_a_damaged_file_is_not_opened(tmp_path):
    (tmp_path / "t").write_bytes(b"not tensors")
    with pytest.raises(IntegrityError, match="not a sound"), open_tensors(tmp_path / "t"):
        pass
