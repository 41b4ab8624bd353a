"""One thread for tiny tensors: a second only waits at barriers, badly so on a busy machine."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _single_thread(_one_thread: None) -> None:
    torch.set_num_threads(1)
