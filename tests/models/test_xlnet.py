"""XLNet against `transformers` where the two streams differ: permuted orders, partial prediction, token types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models.cache import Cache
from seedbed.models.huggingface import read_huggingface
from seedbed.models.language_model import LanguageModel
from small_models import random_ids, small_model

TOLERANCE = 1e-4
VOCAB = 61
LENGTH, PREDICTED = 20, 6
SHAPES: dict[str, dict[str, Any]] = {
    "odd-heads-clamped": {"d_model": 30, "n_layer": 2, "n_head": 3, "d_inner": 41, "clamp_len": 7},
    "untied": {"d_model": 28, "n_layer": 3, "n_head": 4, "d_inner": 50, "tie_word_embeddings": False},
}


def make_theirs(name: str) -> Any:
    torch.manual_seed(1)
    theirs = transformers.XLNetLMHeadModel(transformers.XLNetConfig(vocab_size=VOCAB, **SHAPES[name])).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return theirs


def rewrite(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    tensors = {name: t.clone().contiguous() for name, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **config}))


def orders(rows: int, seed: int) -> Tensor:
    """Random orders (B, T): the rank at which each place is read."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(rows)])


@pytest.mark.parametrize("has_types", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_permuted_orders_give_their_logits(name: str, has_types: bool, tmp_path: Path) -> None:
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours, _ = read_huggingface(tmp_path)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, VOCAB, (4, LENGTH), generator=generator)
    types = torch.randint(0, 3, ids.shape, generator=generator) if has_types else None
    order = orders(4, seed=8)
    # Partial prediction: the last places of the order, in any sequence; their mask says 1 where i may not see j.
    at = order.argsort(1)[:, -PREDICTED:].flip(1)
    mask = (order[:, :, None] <= order[:, None, :]).float()
    mapping = F.one_hot(at, LENGTH).float()
    batch = Batch(ids, token_type_ids=types, attention="order", attend_order=order.int(), query_at=at)
    with torch.no_grad():
        expected = theirs(
            ids, token_type_ids=types, perm_mask=mask, target_mapping=mapping, output_hidden_states=True
        )
        hidden = ours(batch)
        assert hidden.query is not None
        assert (ours.logits(hidden.query) - expected.logits).abs().max() < TOLERANCE
        # They list content and query states in turn; the content stream must agree too.
        assert (hidden.last - expected.hidden_states[-2]).abs().max() < TOLERANCE
        assert expected.logits.std() > 0.1

        real = torch.ones_like(ids)
        real[1, LENGTH - 7 :] = 0
        expected = theirs(
            ids, attention_mask=real, token_type_ids=types, perm_mask=mask, target_mapping=mapping
        ).logits
        padded = Batch(
            ids,
            segment_ids=real.int(),
            has_padding=True,
            token_type_ids=types,
            attention="order",
            attend_order=order.int(),
            query_at=at,
        )
        shown = real.gather(1, at).bool()
        difference = (ours.logits(ours(padded).query) - expected).abs()
        assert difference[shown].max() < TOLERANCE


@pytest.mark.parametrize("name", SHAPES)
def test_causal_is_the_order_of_the_row(name: str, tmp_path: Path) -> None:
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours, _ = read_huggingface(tmp_path)
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, LENGTH, LENGTH).triu(1)
    with torch.no_grad():
        expected = theirs(ids, perm_mask=mask).logits
        assert (ours.logits(ours(Batch(ids, attention="causal")).last) - expected).abs().max() < TOLERANCE


def test_the_first_of_an_order_guesses_without_content() -> None:
    """Deviation: attention gives it zeros; `transformers` would give it the mean of all values, its answer's too."""
    model = small_model("xlnet")
    order = torch.arange(9, dtype=torch.int32).expand(2, -1)
    at = torch.zeros(2, 1, dtype=torch.int64)

    def first(seed: int) -> Tensor:
        batch = Batch(random_ids(2, 9, seed), attention="order", attend_order=order, query_at=at)
        query = model(batch).query
        assert query is not None
        return query

    assert torch.equal(first(0), first(1))
    assert torch.equal(first(0)[0], first(0)[1])


def test_types_are_compared_not_embedded() -> None:
    """Swapping the names of the sentences changes nothing; moving a token to the other sentence does."""
    model = small_model("xlnet")
    ids = random_ids(2, 9)
    types = torch.tensor([[0] * 4 + [1] * 5] * 2)

    def last(types: Tensor | None) -> Tensor:
        return model(Batch(ids, token_type_ids=types)).last

    torch.testing.assert_close(last(types), last(1 - types))
    # Without types no sentence score is added, which is what every token in one sentence gives.
    torch.testing.assert_close(last(None), last(torch.zeros_like(types)))
    assert not torch.allclose(last(types), last(None), atol=1e-2)


def test_what_it_cannot_do_is_refused() -> None:
    model = small_model("xlnet")
    ids = random_ids(1, 8)
    with pytest.raises(IncompatibleError, match="distances only"):
        model(Batch(ids, position_ids=torch.arange(8)[None]))
    cache = Cache.allocate(model.config, batch_size=1, max_length=8)
    with pytest.raises(IncompatibleError, match="no token types"):
        model.trunk(Batch(ids, token_type_ids=torch.zeros_like(ids), attention="causal"), cache=cache)


def test_their_older_files_and_other_heads_are_understood(tmp_path: Path) -> None:
    theirs = make_theirs("odd-heads-clamped")
    theirs.save_pretrained(tmp_path)
    tensors = dict(theirs.state_dict())
    tensors["sequence_summary.summary.weight"] = torch.zeros(30, 30)
    del tensors["lm_loss.weight"]
    rewrite(tmp_path, tensors, n_token=VOCAB, vocab_size=None, mem_len=384, clamp_len=-1)
    ours, left_out = read_huggingface(tmp_path)
    assert list(left_out) == ["sequence_summary.summary.weight"]
    assert isinstance(ours, LanguageModel)
    assert (ours.config.vocab_size, ours.config.clamp_length, ours.config.max_length) == (VOCAB, 0, 512)
    rewrite(tmp_path, {**tensors, "transformer.layer.1.rel_attn.q": torch.zeros(30, 10, 3)})
    with pytest.raises(IncompatibleError, match=r"misshapen \(1\).*\(30, 10, 3\) for \(30, 3, 10\)"):
        read_huggingface(tmp_path)
