from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from seedbed.batch import Batch
from seedbed.models.layers.disentangled_attention import bucket
from small_models import random_ids, small_model


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(256, 512), (32, 128), (6, 12), (7, 500)])
def test_buckets_are_theirs(num_buckets: int, max_distance: int) -> None:
    distances = torch.arange(-700, 701)
    ours = bucket(distances, num_buckets, max_distance)
    assert torch.equal(ours, make_log_bucket_position(distances, num_buckets, max_distance).long())
    assert torch.equal(ours, -bucket(-distances, num_buckets, max_distance))
    assert (ours.diff() >= 0).all()
    assert torch.equal(bucket(distances, 0, max_distance), distances)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("terms", [(True, True), (True, False), (False, True)])
def test_probabilities_are_those_of_the_formula(terms: tuple[bool, bool], shared: bool) -> None:
    """Score by score, as the paper writes it, from the same weights."""
    c2p, p2c = terms
    model = small_model(
        "deberta_v2",
        content_to_position=c2p,
        position_to_content=p2c,
        share_position_projections=shared,
        position_buckets=6,
        max_distance=12,
    )
    batch = Batch(random_ids(1, 11))
    names = ["query.0", "key.0", "attention.0"]
    captured = model.trunk(batch, capture=names).captured
    q, k, found = (captured[name][0] for name in names)  # (H, T, K), (H, T, T)
    attention, trunk = model.trunk.layers[0].attention, model.trunk
    table = trunk.distance_norm(trunk.distance_embedding.weight)

    def project(own: torch.nn.Linear | None, part: int) -> Tensor:
        weight, bias = attention.qkv.weight.split(32)[part], attention.qkv.bias.split(32)[part]
        out = own(table) if own is not None else table @ weight.T + bias
        return out.view(-1, 4, 8).transpose(0, 1)  # (H, 2 * buckets, K)

    scores = torch.zeros(4, 11, 11)
    for i in range(11):
        for j in range(11):
            row = int(bucket(torch.tensor(i - j), 6, 12)) + 6
            score = (q[:, i] * k[:, j]).sum(-1)
            if c2p:
                score = score + (q[:, i] * project(attention.position_key, 1)[:, row]).sum(-1)
            if p2c:
                score = score + (k[:, j] * project(attention.position_query, 0)[:, row]).sum(-1)
            scores[:, i, j] = score / math.sqrt((1 + c2p + p2c) * 8)
    torch.testing.assert_close(scores.softmax(-1), found)
