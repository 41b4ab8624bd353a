"""Which rows a worker holds, and what needs whole weights; `test_two_workers.py` has what two processes do with them."""

from __future__ import annotations

import pytest
import torch

from seedbed.commands.assembly import assemble
from seedbed.config import validate
from seedbed.errors import ConfigError
from seedbed.optim.shards import Shard
from seedbed.recipe import Recipe


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
