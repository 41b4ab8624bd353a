"""Two processes: shared weights (FSDP2) and compressed gradients beside whole ones; the same steps and files, half the memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import seedbed
from seedbed.optim import OPTIMIZERS

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, all cases in one start (`worker_cases.py`)."""
    folder = tmp_path_factory.mktemp("cases")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(Path(seedbed.__file__).parent.parent), str(TESTS)]
    done = subprocess.run(
        [sys.executable, *launcher, str(TESTS / "worker_cases.py"), str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


COMPARED = [
    *(f"optimizer {name}" for name in OPTIMIZERS),
    *(
        f"{family} {kind}"
        for family in ("gpt2", "albert", "native_decoder")
        for kind in ("full_shard", "shard_grad_op")
    ),
    "tensor parallel gpt2",
    "tensor parallel llama",
    "recomputed layers",
    "bfloat16",
    "passes over disturbed embeddings",
]


@pytest.mark.parametrize("case", COMPARED)
def test_shared_weights_learn_what_whole_ones_learn(found, case):
    """Losses, gradient norms, weights, optimizer and average, to rounding; a mean of gradients would be half of the sum."""
    apart = found[case]
    assert apart["moved"] > 1e-4
    assert apart["losses"] < 1e-6
    assert apart["norms"] < 1e-6
    # Adam divides gradients by themselves, those near rounding's size too, at a rate of 0.01: keys' biases have none in truth.
    assert apart["tensors"] < (1e-4 if case.startswith(("gpt2", "albert", "passes", "tensor")) else 2e-5)
    assert apart["score"] < 1e-5


@pytest.mark.parametrize("optim", ["normuon", "adafactor", "schedule_free_adamw", "lion"])
def test_checkpoints_are_those_of_whole_weights(found, optim):
    """Saved shared, loaded whole, saved again: the same bytes; loaded shared, it goes on to the same bits. Lion: by heads."""
    assert found["checkpoints"][optim] == {"files": [True] * 3, "same": True, "goes_on": True}


def test_a_bad_gradient_on_one_worker_is_skipped_and_rolled_back_by_all(found):
    assert found["bad gradient"] == {"is_finite": False, "unchanged": True, "rolled_back": True, "window": 3}


def test_two_workers_hold_half_each(found):
    """Weights, moments and whatever the modules still hold of weights after a step."""
    assert all(0.5 <= share < 0.51 for share in found["held"].values())


@pytest.mark.parametrize("case", ["end", "end of tensor parallel"])
def test_evaluation_probe_and_the_end(found, case):
    end = found[case]
    assert end["trained"] < 1e-6
    assert end["alone"] < 1e-6
    assert all(
        end[name] is True for name in ("averaged_differs", "unchanged", "given", "tied", "num_parameters")
    )


def test_a_run_goes_on_with_what_was_remembered(found):
    """Bit for bit; begun anew, the same run takes another way."""
    powersgd = found["powersgd"]
    assert powersgd["goes_on"]
    assert not powersgd["anew"]
    assert powersgd["files"] == ["powersgd-0-of-2.safetensors", "powersgd-1-of-2.safetensors"]
    assert powersgd["errors_differ"], "each worker has its own"


def test_a_bad_gradient_is_not_remembered(found):
    """Added to the next gradient, it would spoil all later ones."""
    powersgd = found["powersgd"]
    assert not powersgd["is_finite"]
    assert powersgd["unmoved"]
    assert powersgd["after"]
