"""Which rows a worker holds, and what needs whole weights; `test_two_workers.py` has what two processes do with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from seedbed.commands import assembly, sharing
from seedbed.commands.assembly import assemble
from seedbed.config import validate
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.optim.shards import Shard
from seedbed.recipe import Recipe
from toys import VOCABULARY


@pytest.fixture
def toy(monkeypatch):
    """Stages with a tokenizer of the toy vocabulary."""
    monkeypatch.setattr(assembly.Vocabulary, "of", lambda tokenizer: VOCABULARY)
    return SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=VOCABULARY.vocab_size))


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


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"runtime": {"sharding": "full_shard"}}, "runtime.sharding"),
        ({"training": {"exact": True}}, "training.exact"),
        ({"training": {"gradient_compression": "powersgd"}}, "gradient_compression"),
        ({"optim": {"name": "muon"}}, "optim muon, which looks at whole matrices"),
        (
            {"objective": {"name": "distillation", "teacher": "x"}},
            "distillation, which looks at single heads",
        ),
        ({"model": {"name": "modernbert"}, "objective": {"name": "masked_lm"}}, "this one is modernbert"),
        ({"model": {"num_heads": 3, "hidden_size": 36}}, "num_heads 3, num_kv_heads 3"),
        ({"model": {"ffn_size": 51}}, "ffn_size 51"),
        ({"model": {"num_kv_heads": 1}}, "num_kv_heads 1"),
    ],
)
def test_layers_that_cannot_be_cut_by_heads_are_refused(toy, sections, said):
    sizes = {"name": "llama", "num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 64}
    data = {"run": "x", "corpus": {"inputs": ["y"]}, "objective": {"name": "causal_lm"}, **sections}
    data["model"] = sizes | sections.get("model", {})
    data["runtime"] = {"tensor_parallel": 2} | sections.get("runtime", {})
    recipe = validate(Recipe, data, place="test")
    with pytest.raises((ConfigError, IncompatibleError), match=said) as refused:
        assemble(recipe, toy)
    assert "runtime.tensor_parallel=1" in refused.value.hint


def test_a_number_of_workers_that_makes_no_groups_is_refused(toy, monkeypatch):
    monkeypatch.setattr(sharing, "num_workers", lambda: 3)
    data = {"run": "x", "corpus": {"inputs": ["y"]}, "runtime": {"tensor_parallel": 2}}
    data |= {"objective": {"name": "causal_lm"}, "model": {"name": "llama"}}
    with pytest.raises(ConfigError, match="there are 3"):
        assemble(validate(Recipe, data, place="test"), toy)
