"""Write and read tensors as safetensors files, whole or one at a time, with the operating system's errors told as such."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from seedbed.errors import IntegrityError

__all__ = ["TensorFile", "load_tensors", "open_tensors", "save_tensors", "stream_order", "stream_tensors"]

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Of number types in the format, in the order of its own enumeration: the largest alignment last."""

Kind = tuple[torch.dtype, tuple[int, ...]]
"""Number type and shape."""


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file; they are copied to the CPU and need not be contiguous.

    Raises:
        OSError: as the system gave it. The library hides it in an error of its own, and a full disk would look like a bug.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), str(error), str(path)) from error


def stream_order(kinds: Mapping[str, Kind]) -> list[str]:
    """Return names in the order their tensors lie in a file: large number types first, then by name."""
    ranks = {dtype: rank for rank, dtype in enumerate(_NAMES)}
    return sorted(kinds, key=lambda name: (-ranks[kinds[name][0]], name))


def stream_tensors(kinds: Mapping[str, Kind], tensor_of: Callable[[str], Tensor], path: Path) -> None:
    """Write a safetensors file, asking for one tensor after the other, in `stream_order`; the bytes are those of `save_tensors`.

    Raises:
        OSError: as the system gave it.
    """
    header: dict[str, Any] = {}
    end = 0
    for name in stream_order(kinds):
        dtype, shape = kinds[name]
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    said = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little"))
        file.write(said)
        for name in stream_order(kinds):
            tensor = tensor_of(name).detach().to("cpu").contiguous()
            assert (tensor.dtype, tuple(tensor.shape)) == kinds[name], name
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        IntegrityError: it is no safetensors file, or damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _unsound(path, error) from error


class TensorFile:
    """Read tensors of an open safetensors file, one at a time."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.names: list[str] = list(file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Return a tensor, or these rows of it; nothing else is read."""
        if rows is None:
            whole: Tensor = self._file.get_tensor(name)
            return whole
        found = self._file.get_slice(name)
        few: Tensor = found[rows] if rows.stop > rows.start else found[:1][:0]
        return few


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file while the block runs.

    Raises:
        IntegrityError: it is no safetensors file, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield TensorFile(file)
    except SafetensorError as error:
        raise _unsound(path, error) from error


def _unsound(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path} is not a sound safetensors file: {error}.", hint="restore it from a copy")
