"""Workers that share weights (FSDP2) beside workers that hold them whole: the same steps, files and refusals, half the memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import seedbed
from seedbed.commands.assembly import assemble
from seedbed.config import validate
from seedbed.errors import ConfigError
from seedbed.optim import OPTIMIZERS
from seedbed.optim.shards import Shard
from seedbed.recipe import Recipe

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, all cases in one start (`sharded_cases.py`)."""
    folder = tmp_path_factory.mktemp("cases")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(Path(seedbed.__file__).parent.parent), str(TESTS)]
    done = subprocess.run(
        [sys.executable, *launcher, str(TESTS / "sharded_cases.py"), str(folder)],
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
    # Adam divides gradients of rounding's size by themselves: keys' biases have none in truth.
    assert apart["tensors"] < (1e-4 if case.startswith(("gpt2", "albert", "passes")) else 1e-6)
    assert apart["score"] < 1e-5


@pytest.mark.parametrize("optim", ["normuon", "adafactor", "schedule_free_adamw"])
def test_checkpoints_are_those_of_whole_weights(found, optim):
    """Saved shared, loaded whole, saved again: the same bytes; loaded shared, it goes on to the same bits."""
    assert found["checkpoints"][optim] == {"files": [True] * 3, "same": True, "goes_on": True}


def test_a_bad_gradient_on_one_worker_is_skipped_and_rolled_back_by_all(found):
    assert found["bad gradient"] == {"is_finite": False, "unchanged": True, "rolled_back": True, "window": 3}


def test_two_workers_hold_half_each(found):
    """Weights, moments and whatever the modules still hold of weights after a step."""
    assert all(0.5 <= share < 0.51 for share in found["held"].values())


def test_evaluation_probe_and_the_end(found):
    end = found["end"]
    assert end["trained"] < 1e-6
    assert end["alone"] < 1e-6
    assert all(end[name] is True for name in ("averaged_differs", "unchanged", "given", "num_parameters"))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 4, 8])
def test_every_row_is_held_once_as_torch_cuts_them(rows, num_shards):
    whole = torch.arange(rows * 2).view(rows, 2)
    shards = [Shard((rows, 2), rank=rank, num_shards=num_shards) for rank in range(num_shards)]
    cut = [shard.own(whole) for shard in shards]
    chunks = torch.chunk(whole, num_shards)
    assert all(torch.equal(own, chunk) for own, chunk in zip(cut, chunks, strict=False))
    assert torch.equal(torch.cat(cut), whole)
    assert shards[0].most_rows == max(len(own) for own in cut)
    assert {shard.numel for shard in shards} == {rows * 2}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"training": {"exact": True}}, "training.exact"),
        ({"training": {"gradient_compression": "fp16"}}, "gradient_compression=fp16"),
        ({"regularisation": {"adversarial": {"name": "smart"}}}, "smart"),
    ],
)
@pytest.mark.parametrize("kind", ["full_shard", "shard_grad_op"])
def test_what_needs_whole_weights_is_refused_on_one_worker_too(section, said, kind):
    recipe = validate(
        Recipe,
        {"run": "x", "corpus": {"inputs": ["y"]}, "runtime": {"sharding": kind}, **section},
        place="test",
    )
    with pytest.raises(ConfigError, match=said) as refused:
        assemble(recipe, None)
    assert f"runtime.sharding={kind}" in refused.value.message
    assert "runtime.sharding=none" in refused.value.hint
