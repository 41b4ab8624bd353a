"""Gradients that travel as products of thin matrices; `test_two_workers.py` has what two processes do with them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import torch
from torch import nn

from seedbed.training import checkpoint
from seedbed.training.compression import PowerSGDMemory


def test_another_number_of_workers_begins_anew_and_says_so(monkeypatch, caplog):
    memory = PowerSGDMemory()
    memory.load({"num_steps": torch.tensor(2), "error": torch.ones(3)}, device=torch.device("cpu"))
    state = SimpleNamespace(memory=memory, learner=nn.Linear(1, 1))
    files = {"powersgd-0-of-2.safetensors": {}, "powersgd-1-of-2.safetensors": {}}
    monkeypatch.setattr(checkpoint, "num_workers", lambda: 4)
    with caplog.at_level(logging.WARNING):
        checkpoint._load_memory(state, SimpleNamespace(files=files, path="step-00000003"))
    assert "no memory of PowerSGD for 4 workers" in caplog.text
    assert memory.saved().keys() == {"num_steps"}
    assert int(memory.saved()["num_steps"]) == 0
