"""What a machine decides, on machines this one pretends to be."""

import ast
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from seedbed.commands.console import Console
from seedbed.commands.stages import prepare
from seedbed.config import load_config, validate
from seedbed.errors import ConfigError
from seedbed.recipe import Recipe
from seedbed.runtime import RuntimeConfig, autocast, describe_machine
from tiny_runs import train, values, write_sentences


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device with 16 of 20 GiB free; returns what to change about it."""

    def with_(*, has_bfloat16=True, has_triton=True):
        found = importlib.util.find_spec
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        # Torch emulates bfloat16, and says that it has it unless it is asked about the hardware.
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: has_bfloat16 or including_emulation,
        )
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (16 << 30, 20 << 30))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretend")
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (object() if has_triton else None) if name == "triton" else found(name),
        )

    return with_


def test_a_new_gpu_gets_everything(gpu):
    gpu()
    runtime = RuntimeConfig()
    assert runtime.compute_dtype() == torch.bfloat16
    assert runtime.compiles()
    assert runtime.attention_kernel() == "flex"
    assert runtime.loss_logits_bytes() == 512 << 20
    assert runtime.memory_bytes() == int(0.9 * (16 << 30))
    machine = describe_machine(runtime)
    assert (machine["compile"], machine["attention"], machine["loss_logits_mib"]) == (True, "flex", 512)


def test_an_old_gpu_gets_float16_and_one_without_triton_nothing_that_needs_it(gpu):
    gpu(has_bfloat16=False, has_triton=False)
    runtime = RuntimeConfig()
    assert runtime.compute_dtype() == torch.float16
    assert not runtime.compiles()
    assert runtime.attention_kernel() == "sdpa"
    assert "compile" not in describe_machine(runtime)
    assert RuntimeConfig(compile=True).compiles()
    assert RuntimeConfig(attention="flex").attention_kernel() == "flex"


def test_a_cpu_does_what_it_did_and_its_machine_file_is_as_before():
    runtime = RuntimeConfig(device="cpu")
    assert not runtime.compiles()
    assert runtime.attention_kernel() == "sdpa"
    assert runtime.loss_logits_bytes() == 0
    assert not {"compile", "attention", "loss_logits_mib"} & set(describe_machine(runtime))
    changed = describe_machine(RuntimeConfig(device="cpu", compile="graphs", loss_logits_mib=3))
    assert (changed["compile"], changed["loss_logits_mib"]) == ("graphs", 3)


@pytest.mark.parametrize(
    ("word", "value"), [("auto", "auto"), ("on", True), ("off", False), ("graphs", "graphs")]
)
def test_compile_is_said_in_yaml(word, value, tmp_path):
    """YAML reads on and off as booleans."""
    recipe = load_config(Recipe, None, [f"run={tmp_path}", f"runtime.compile={word}"])
    assert recipe.runtime.compile == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_casts_to_what_is_asked(dtype):
    with autocast("cpu", dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_graphs_of_several_micro_batches_are_refused_and_portions_train(tmp_path):
    data = values(write_sentences(tmp_path / "text", num_documents=10), tmp_path / "run")
    data["training"]["budget_steps"] = 2
    prepared = prepare(validate(Recipe, data, place="test"), Console(as_json=True))
    with pytest.raises(ConfigError, match="this one has 2 micro-batches"):
        train(prepared, data | {"runtime": {"threads": 1, "compile": "graphs"}})
    losses = []
    for name, extra in (("whole", {}), ("portions", {"loss_logits_mib": 1})):
        data = data | {"run": str(tmp_path / name), "runtime": {"threads": 1, "precision": "float32"} | extra}
        with pytest.MonkeyPatch.context() as patch:
            if extra:  # a mebibyte holds a toy's logits twice over
                patch.setattr(RuntimeConfig, "loss_logits_bytes", lambda self: 4096)
            train(prepared, data)
        lines = (tmp_path / name / "pretrain" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1] != losses[0]  # another order of sums: the portions were taken


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
    ids=["ours", "their own count", "their own policy"],
)
def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise(own, expected):
    """Seen by a process of its own, which has the variables of no other test."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in names} | own
    code = f"import os, seedbed.cli; print({{k: os.environ[k] for k in {names} if k in os.environ}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert ast.literal_eval(done.stdout) == expected
