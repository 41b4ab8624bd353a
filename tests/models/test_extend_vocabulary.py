"""Models with more tokens: old rows and logits stay, new rows are means of their pieces, the family still exports."""

from __future__ import annotations

import pytest
import torch

from seedbed.batch import Batch
from seedbed.models import MODELS
from seedbed.models.extend_vocabulary import extend_vocabulary
from seedbed.models.huggingface import read_huggingface, write_huggingface
from small_models import ONE_STACK, VOCAB, logits_of, native_attention, random_ids, small_model

PIECES = {VOCAB: (3, 7), VOCAB + 1: (3, 7, 7, 11)}


@pytest.mark.parametrize("family", ONE_STACK)
@pytest.mark.parametrize("tied", [True, False])
def test_old_logits_stay_and_new_rows_are_means(family, tied):
    if family == "albert" and not tied:
        pytest.skip("its head is always tied")
    model = small_model(family, tie_embeddings=tied)
    grown = extend_vocabulary(model, PIECES)
    batch = Batch(random_ids(2, 12), attention=native_attention(model))
    before, after = logits_of(model, batch), logits_of(grown, batch)
    assert after.shape[-1] == grown.config.vocab_size == VOCAB + 2
    assert torch.allclose(after[..., :VOCAB], before, atol=1e-5)
    table, own = grown.trunk.embedding.token.weight, model.trunk.embedding.token.weight
    assert torch.equal(table[:VOCAB], own)
    assert torch.allclose(table[VOCAB], own[[3, 7]].mean(0))
    if not model.config.logit_softcap:  # the logit of a mean is the mean of the logits
        expected = before[..., [3, 7, 7, 11]].mean(-1)
        assert torch.allclose(after[..., VOCAB + 1], expected, atol=1e-4)


def test_rows_of_padding_are_taken_first(tmp_path):
    model = small_model("bert")
    grown = extend_vocabulary(model, {VOCAB - 2: (3, 7)})
    assert grown.config.vocab_size == VOCAB
    own = model.trunk.embedding.token.weight
    assert torch.allclose(grown.trunk.embedding.token.weight[VOCAB - 2], own[[3, 7]].mean(0))


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_an_extended_model_exports(family, tmp_path):
    section = MODELS[family]
    assert not section.native_reason
    grown = extend_vocabulary(small_model(family), PIECES)
    write_huggingface(grown, tmp_path)
    again, left_out = read_huggingface(tmp_path)
    assert again.config.vocab_size == VOCAB + 2
    assert left_out == {}
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), grown.state_dict().values(), strict=True)
    )
