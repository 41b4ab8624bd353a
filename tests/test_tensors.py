import pytest
import torch
from safetensors import SafetensorError

from seedbed.errors import DiskError, IntegrityError, disk_errors
from seedbed.tensors import load_tensors, save_tensors


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
