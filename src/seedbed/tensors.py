"""Write and read tensors as safetensors files, with the operating system's errors told as such."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seedbed.errors import IntegrityError

__all__ = ["load_tensors", "save_tensors"]


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


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        IntegrityError: it is no safetensors file, or damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise IntegrityError(
            f"{path} is not a sound safetensors file: {error}.", hint="restore it from a copy"
        ) from error
