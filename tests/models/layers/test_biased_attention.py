from __future__ import annotations

from typing import Any

import pytest
import torch

from seedbed.batch import Batch
from seedbed.models.layers.biased_attention import BiasedAttention, shift
from small_models import random_ids, small_model


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (4, 4), (3, 7), (7, 3)])
@pytest.mark.parametrize("offset", [-2, 0, 4])
def test_shift_finds_the_column_of_every_distance(rows: int, columns: int, offset: int) -> None:
    distances = torch.arange(offset + rows, offset - columns, -1)
    found = shift(distances.expand(2, 3, rows, -1).contiguous())
    expected = offset + torch.arange(rows)[:, None] - torch.arange(columns)
    assert torch.equal(found, expected.expand(2, 3, -1, -1))


@pytest.mark.parametrize("family", ["xlnet", "deberta_v2"])
def test_both_streams_see_the_same_distances(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same queries meet the keys alike, by views in the content stream and by an index in the query stream."""
    changes: dict[str, Any] = {"position_buckets": 6, "max_distance": 20} if family == "deberta_v2" else {}
    model = small_model(family, query_stream=True, **changes)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 13, 8, generator=generator)
    at = torch.tensor([[3, 12, 0], [7, 7, 1]])
    rows = at[:, None, :, None].expand(-1, 4, -1, 8)
    seen = []
    for attention in (layer.attention for layer in model.trunk.layers):
        assert isinstance(attention, BiasedAttention)

    original = type(model.trunk.layers[0].attention).distance_bias

    def spy(self: Any, _: Any, distances: Any, plan: Any, *, is_query: bool) -> Any:
        chosen = q.gather(2, rows) if is_query else q
        seen.append(original(self, chosen, distances, plan, is_query=is_query))
        return seen[-1]

    monkeypatch.setattr(type(model.trunk.layers[0].attention), "distance_bias", spy)
    types = torch.randint(0, 2, (2, 13), generator=generator) if model.config.type_vocab_size else None
    order = torch.arange(13, dtype=torch.int32).expand(2, -1)
    batch = Batch(random_ids(2, 13), token_type_ids=types, attention="order", attend_order=order, query_at=at)
    with torch.no_grad():
        model.trunk(batch)
    (content, content_bias), (query, query_bias) = seen[:2]
    torch.testing.assert_close(content.gather(2, rows), query)
    picked = content_bias.gather(2, at[:, None, :, None].expand(-1, 4, -1, 13))
    torch.testing.assert_close(picked, query_bias)
    assert query_bias.std() > 0.1


@pytest.mark.parametrize("family", ["xlnet", "deberta_v2"])
def test_switches_of_the_native_block_work_here_too(family: str) -> None:
    switches = {
        "query_key_norm": True,
        "value_residual": True,
        "attention_gate": True,
        "inner_norm": True,
        "query_stream": True,
    }
    order = torch.arange(9, dtype=torch.int32).expand(2, -1)
    batch = Batch(
        random_ids(2, 9), attention="order", attend_order=order, query_at=torch.tensor([[1, 5], [7, 2]])
    )
    full = small_model(family, **switches)
    hidden = full.trunk(batch)
    assert hidden.query is not None
    for switch in set(switches) - {"query_stream"}:
        less = small_model(family, **{**switches, switch: False})
        assert not torch.allclose(less.trunk(batch).last, hidden.last, atol=1e-3), switch
        assert not torch.allclose(less.trunk(batch).query, hidden.query, atol=1e-3), switch
