from __future__ import annotations

import pytest
import torch

from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.generation import fill_mask
from small_models import VOCAB, logits_of, small_model

IDS = [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_candidates_are_the_most_probable(name: str) -> None:
    model = small_model(name)
    probabilities = logits_of(model, Batch(torch.tensor([IDS])))[0].softmax(-1)
    places = [4, 1]
    for place, candidates in zip(places, fill_mask(model, IDS, places, top_k=7), strict=True):
        best = probabilities[place].topk(7)
        assert [c.token_id for c in candidates] == best.indices.tolist()
        assert [c.probability for c in candidates] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert len(fill_mask(model, IDS, [0], top_k=1000)[0]) == VOCAB


def test_token_types_count() -> None:
    model = small_model("bert")
    plain = fill_mask(model, IDS, [2])[0]
    assert fill_mask(model, IDS, [2], token_type_ids=[0] * 6)[0] == plain
    assert fill_mask(model, IDS, [2], token_type_ids=[0, 0, 0, 1, 1, 1])[0] != plain


def test_wrong_requests_are_refused() -> None:
    model = small_model("bert", max_length=8)
    for ids, at, words in (
        (IDS, [], "no masked place"),
        (IDS, [6], "not all inside"),
        ([1] * 9, [0], "9 tokens"),
    ):
        with pytest.raises(DataError, match=words):
            fill_mask(model, ids, at)
    with pytest.raises(IncompatibleError, match="use generate"):
        fill_mask(small_model("gpt2"), IDS, [1])
