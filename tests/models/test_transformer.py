"""What holds for every architecture of one stack, and for descriptions that no family builds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError, MemoryLimitError
from seedbed.models import MODELS
from seedbed.models.cache import Cache
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.models.layers.dropout import Dropout
from seedbed.models.layers.position import alibi_bias
from seedbed.models.trunks import set_recomputing
from small_models import ONE_STACK, VARIANTS, VOCAB, logits_of, native_attention, random_ids, small_model

KEY = torch.tensor(7, dtype=torch.int32)
FAMILIES = [*ONE_STACK, *VARIANTS]
DECODERS = [name for name in FAMILIES if small_model(name).config.is_causal]
# 300 is above the length where the fused kernel takes over on a CPU.
LENGTHS = [24, 300]


def packed(ids: Tensor, model: LanguageModel, lengths: list[int]) -> Batch:
    """Cut every row into documents of these lengths; a length of 0 at the end means the rest is padding."""
    segments = torch.zeros(ids.shape, dtype=torch.int32)
    start = 0
    for number, length in enumerate(lengths, 1):
        segments[:, start : start + length] = number
        start += length
    return Batch(
        input_ids=ids,
        segment_ids=segments,
        attention=native_attention(model),
        is_segmented=True,
        has_padding=start < ids.shape[1],
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes(name: str) -> None:
    model = small_model(name)
    batch = Batch(input_ids=random_ids(3, 11), attention=native_attention(model))
    hidden = model(batch)
    assert hidden.last.shape == (3, 11, 32)
    assert hidden.query is None
    assert hidden.captured == {}
    at = torch.tensor([0, 12, 32])
    assert model.logits_at(hidden, at).shape == (3, VOCAB)
    torch.testing.assert_close(model.logits_at(hidden, at), model.logits(hidden.last).flatten(0, 1)[at])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_future_token_never_changes_past_logits(name: str, length: int) -> None:
    model = small_model(name)
    ids = random_ids(2, length)
    other = ids.clone()
    cut = length // 2
    other[:, cut:] = (other[:, cut:] + 1) % VOCAB
    a, b = (logits_of(model, Batch(input_ids=x, attention="causal")) for x in (ids, other))
    assert torch.equal(a[:, :cut], b[:, :cut])
    assert not torch.allclose(a[:, cut:], b[:, cut:])
    full = logits_of(model, Batch(input_ids=ids)), logits_of(model, Batch(input_ids=other))
    assert not torch.allclose(full[0][:, :cut], full[1][:, :cut])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_neighbour_never_changes_a_document(name: str, length: int) -> None:
    model = small_model(name)
    ids = random_ids(2, length)
    lengths = [length // 3, length // 4, length - length // 3 - length // 4]
    start = lengths[0]
    end = start + lengths[1]
    logits = logits_of(model, packed(ids, model, lengths))
    other = ids.clone()
    other[:, :start] = (other[:, :start] + 1) % VOCAB
    other[:, end:] = (other[:, end:] + 3) % VOCAB
    assert torch.equal(logits_of(model, packed(other, model, lengths))[:, start:end], logits[:, start:end])
    # Nor does its place in the row: the document alone gives the same.
    alone = logits_of(model, Batch(input_ids=ids[:, start:end], attention=native_attention(model)))
    torch.testing.assert_close(alone, logits[:, start:end], atol=1e-4, rtol=1e-4)
    joined = Batch(input_ids=other, attention=native_attention(model))
    assert not torch.allclose(logits_of(model, joined)[:, start:end], logits[:, start:end], atol=1e-3)


@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_nothing_and_is_finite(name: str, length: int, is_segmented: bool) -> None:
    model = small_model(name)
    ids = random_ids(2, length)
    real = torch.ones_like(ids, dtype=torch.int32)
    real[1, length - 9 :] = 0
    attention = native_attention(model)

    def run(x: Tensor) -> Tensor:
        batch = Batch(
            input_ids=x, segment_ids=real, attention=attention, has_padding=True, is_segmented=is_segmented
        )
        return logits_of(model, batch)

    logits = run(ids)
    assert logits.isfinite().all()
    other = ids.clone()
    other[1, length - 9 :] = 0
    assert torch.equal(run(other)[real > 0], logits[real > 0])
    alone = logits_of(model, Batch(input_ids=ids[1:, : length - 9], attention=attention))
    torch.testing.assert_close(alone[0], logits[1, : length - 9], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_padded_rows_give_finite_gradients(name: str) -> None:
    model = small_model(name)
    real = torch.zeros(2, 10, dtype=torch.int32)
    real[0, :4] = 1  # The second row is all padding.
    batch = Batch(random_ids(2, 10), segment_ids=real, attention=native_attention(model), has_padding=True)
    model(batch).last.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.trunk.parameters() if p.grad is not None)


@pytest.mark.parametrize("attention", ["full", "causal", "order"])
@pytest.mark.parametrize("name", ["bert", "llama", "modernbert", "alibi_encoder", "alibi_decoder"])
def test_both_attention_paths_agree(name: str, attention: str) -> None:
    """Capturing probabilities forces the unfused path, so the same layer can be run both ways."""
    changes = {"local_window": 40, "global_every_n": 2} if name == "modernbert" else {}
    if name == "llama":
        changes = {"num_kv_heads": 2}
    model = small_model(name, **changes)
    ids = random_ids(2, 300)
    segments = torch.ones(2, 300, dtype=torch.int32)
    segments[0, 120:] = 2
    segments[1, 280:] = 0
    order = torch.stack([torch.randperm(300), torch.arange(300)]).int() if attention == "order" else None
    batch = Batch(
        ids,
        segment_ids=segments,
        attention=attention,  # type: ignore[arg-type]
        is_segmented=True,
        has_padding=True,
        attend_order=order,
    )
    everywhere = [f"attention.{i}" for i in range(3)]
    fused = model.trunk(batch)
    unfused = model.trunk(batch, capture=everywhere)
    torch.testing.assert_close(fused.last, unfused.last, atol=2e-4, rtol=2e-4)
    for layer, name_ in enumerate(everywhere):
        p = unfused.captured[name_]
        assert p.shape == (2, 4, 300, 300)
        torch.testing.assert_close(p.sum(-1), torch.ones(2, 4, 300))
        index = torch.arange(300)
        allowed = segments[:, :, None] == segments[:, None, :]
        if attention == "causal":
            allowed = allowed & (index[:, None] >= index)
        if order is not None:
            allowed = allowed & (order[:, :, None] >= order[:, None, :])
        if model.config.is_local(layer):
            allowed = allowed & ((index[:, None] - index).abs() <= 20)
        assert (p[(~allowed)[:, None].expand_as(p)] == 0).all()
        assert (p[allowed[:, None].expand_as(p)] > 0).float().mean() > (0.5 if "alibi" in name else 0.99)


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_fused_local_layers_keep_their_window_in_plain_batches(attention: str) -> None:
    """Without segments and padding the fused kernel is told "causal" by a flag, which a local layer must not use."""
    model = small_model("modernbert", local_window=40, global_every_n=2)
    batch = Batch(random_ids(2, 300), attention=attention)  # type: ignore[arg-type]
    unfused = model.trunk(batch, capture=[f"attention.{i}" for i in range(3)])
    torch.testing.assert_close(model.trunk(batch).last, unfused.last, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_needs_a_key_whatever_the_mode(name: str) -> None:
    model = small_model(name, hidden_dropout=0.3, attention_dropout=0.2)
    batch = Batch(random_ids(2, 16), attention=native_attention(model))
    model.train()
    plain = model.trunk(batch).last
    model.eval()
    assert torch.equal(model.trunk(batch).last, plain)
    dropped = model.trunk(batch, dropout_key=KEY).last
    assert not torch.allclose(dropped, plain, atol=1e-2)
    model.train()
    assert torch.equal(model.trunk(batch, dropout_key=KEY).last, dropped)
    assert not torch.allclose(model.trunk(batch, dropout_key=KEY + 1).last, dropped, atol=1e-2)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_follows_the_row_not_the_batch(name: str, attention_dropout: float) -> None:
    model = small_model(name, hidden_dropout=0.3, attention_dropout=attention_dropout)
    ids = random_ids(4, 16)
    row_ids = torch.tensor([5, 1 << 40, 7, 9])
    whole = model.trunk(Batch(ids, row_ids=row_ids, attention=native_attention(model)), dropout_key=KEY).last
    for rows in ([2], [3, 1]):
        part = Batch(ids[rows], row_ids=row_ids[rows], attention=native_attention(model))
        torch.testing.assert_close(model.trunk(part, dropout_key=KEY).last, whole[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "per_layer"), [("bert", 5), ("xlnet", 6)])
def test_every_dropout_site_has_a_number_of_its_own(
    name: str, per_layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sites with one number would drop the same channels of the same tokens."""
    sites: list[int] = []
    for kind in ("hidden", "attention"):
        original = getattr(Dropout, kind)

        def recorded(
            self: Dropout, values: Tensor, *, site: int, _run: Any = original, **rest: Any
        ) -> Tensor:
            sites.append(site)
            return _run(self, values, site=site, **rest)

        monkeypatch.setattr(Dropout, kind, recorded)
    model = small_model(name, query_stream=True, hidden_dropout=0.1, attention_dropout=0.1)
    order = torch.arange(8, dtype=torch.int32).expand(2, -1)
    at = torch.tensor([[1, 5], [7, 2]])
    batch = Batch(random_ids(2, 8), attention="order", attend_order=order, query_at=at)
    model.trunk(batch, dropout_key=KEY)
    # Per layer: probabilities and two sublayers of the content, two sublayers of the queries (and their probabilities in
    # XLNet); and both embeddings.
    assert len(sites) == 3 * per_layer + 2
    assert len(set(sites)) == len(sites)


@pytest.mark.parametrize("name", FAMILIES)
def test_embedding_delta_moves_the_output_and_takes_gradients(name: str) -> None:
    model = small_model(name).double()
    generator = torch.Generator().manual_seed(0)
    batch = Batch(random_ids(2, 9), attention=native_attention(model))
    width = model.config.embedding_width
    zero = torch.zeros(2, 9, width, dtype=torch.float64, requires_grad=True)
    hidden = model.trunk(batch, embedding_delta=zero)
    torch.testing.assert_close(hidden.last, model.trunk(batch).last)
    weights = torch.randn(2, 9, 32, dtype=torch.float64, generator=generator)
    direction = torch.randn(2, 9, width, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((hidden.last * weights).sum(), zero)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (
            (model.trunk(batch, embedding_delta=sign * step * direction).last * weights).sum()
            for sign in (1, -1)
        )
    assert float(ahead - behind) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_capture_returns_what_it_names(name: str) -> None:
    model = small_model(name, num_kv_heads=4)
    batch = Batch(random_ids(2, 9), attention=native_attention(model))
    names = ["hidden.0", "hidden.3", "query.1", "key.2", "value.0", "attention.1"]
    hidden = model.trunk(batch, capture=names)
    assert set(hidden.captured) == set(names)
    assert hidden.captured["query.1"].shape == (2, 4, 9, 8)
    assert hidden.captured["attention.1"].shape == (2, 4, 9, 9)
    torch.testing.assert_close(hidden.last, model.trunk(batch).last)
    last = hidden.captured["hidden.3"]
    expected = model.trunk.final_norm(last) if model.trunk.final_norm is not None else last
    assert torch.equal(expected, hidden.last)
    if model.config.attention_kind == "dot_product":
        compare_with_scores(model, batch, hidden.captured)
    hidden.captured["attention.1"].sum().backward()
    with pytest.raises(IncompatibleError, match=r"hidden\.4"):
        model.trunk(batch, capture=["hidden.4"])


def compare_with_scores(model: LanguageModel, batch: Batch, captured: Mapping[str, Tensor]) -> None:
    scores = captured["query.1"] @ model.trunk(batch, capture=["key.1"]).captured["key.1"].transpose(2, 3)
    scores = scores * (model.config.attention_scale or 8**-0.5)
    if model.trunk.relative is not None:
        scores = scores + model.trunk.relative.between(torch.arange(9)[None], torch.arange(9)[None])
    if model.config.positions == "alibi":
        scores = scores + alibi_bias(torch.arange(9)[None], torch.arange(9)[None], 4, scores.dtype)
    if model.config.is_causal:
        scores = scores.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), float("-inf"))
    torch.testing.assert_close(scores.softmax(-1), captured["attention.1"])


@pytest.mark.parametrize("name", FAMILIES)
def test_computing_only_target_places_changes_nothing(name: str) -> None:
    at = torch.tensor([3, 4, 17, 30, 41])
    results = []
    for chosen in (None, at):
        model = small_model(name, hidden_dropout=0.2)
        batch = Batch(random_ids(3, 14), attention=native_attention(model))
        hidden = model.trunk(batch, dropout_key=KEY, at=chosen)
        last = hidden.last.flatten(0, 1)[at] if chosen is None else hidden.last
        model.logits(last).logsumexp(-1).sum().backward()
        results.append((last.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (full, gradients), (part, others) = results
    assert part.shape == (5, 32)
    torch.testing.assert_close(full, part)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[key], atol=1e-4, rtol=1e-4, msg=key)
    with pytest.raises(IncompatibleError, match=r"hidden\.3"):
        small_model(name).trunk(batch, at=at, capture=["hidden.3"])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", FAMILIES)
def test_running_layers_again_changes_no_bit_and_saves_less(name: str, dropout: float) -> None:
    """Activation checkpointing: the same output, the same gradients, fewer bytes kept for the backward pass."""
    results, kept = [], []
    for recomputes in (False, True):
        model = small_model(name, hidden_dropout=dropout, num_layers=6, global_every_n=1, local_window=0)
        set_recomputing(model, recomputes)
        batch = Batch(random_ids(3, 40), attention=native_attention(model))
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, own: set[int] = own, seen: dict[int, int] = seen) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.trunk(batch, dropout_key=KEY)
        model.logits(hidden.last).logsumexp(-1).sum().backward()
        results.append([hidden.last.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        kept.append(sum(seen.values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("name", ONE_STACK)
def test_bfloat16_stays_close_to_float32(name: str) -> None:
    """Stated bound: over unit-scale logits, autocast moves a log-probability by less than 0.05 on average."""
    section = MODELS[name].model_validate({"preset": "tiny"})
    model = build_model(section.build(vocab_size=VOCAB), seed=0)
    batch = Batch(random_ids(4, 64), attention=native_attention(model))
    exact = logits_of(model, batch).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        half = logits_of(model, batch)
    assert half.dtype == torch.bfloat16
    error = (half.float().log_softmax(-1) - exact).abs()
    assert error.mean() < 0.01
    assert error.max() < 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_weight(name: str) -> None:
    model = small_model(name)
    count = model.config.type_vocab_size
    types = torch.arange(18).view(2, 9) % count if count else None
    batch = Batch(random_ids(2, 9), token_type_ids=types, attention=native_attention(model))
    if model.config.query_stream:
        order = torch.arange(9, dtype=torch.int32).expand(2, -1)
        at = torch.tensor([[1, 5], [7, 2]])
        batch = replace(batch, attention="order", attend_order=order, query_at=at)
    hidden = model(batch)
    features = hidden.last if hidden.query is None else torch.cat([hidden.last, hidden.query], 1)
    model.logits(features).logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("split", [1, 5, 23])
def test_logits_with_a_cache_equal_those_without(name: str, split: int) -> None:
    model = small_model(name, **({"num_kv_heads": 2} if name == "llama" else {}))
    ids = random_ids(3, 24)
    whole = logits_of(model, Batch(ids, attention="causal"))
    cache = Cache.allocate(model.config, batch_size=3, max_length=24)
    parts = [model.trunk(Batch(ids[:, :split], attention="causal"), cache=cache).last]
    parts += [
        model.trunk(Batch(ids[:, i : i + 1], attention="causal"), cache=cache).last for i in range(split, 24)
    ]
    with torch.no_grad():
        logits = model.logits(torch.cat(parts, 1))
    assert (logits - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))
    with pytest.raises(MemoryLimitError, match="25 tokens do not fit a cache of 24"):
        model.trunk(Batch(ids[:, :1], attention="causal"), cache=cache)


@pytest.mark.parametrize("name", FAMILIES)
def test_cache_keeps_segments_positions_and_order(name: str) -> None:
    model = small_model(name)
    ids = random_ids(2, 20)
    segments = torch.tensor([[1] * 7 + [2] * 13, [1] * 15 + [2] * 5], dtype=torch.int32)
    order = torch.arange(20, dtype=torch.int32).expand(2, -1)
    for attention in ("causal", "order"):
        marks = order if attention == "order" else None
        whole = model.trunk(
            Batch(ids, segment_ids=segments, attention=attention, is_segmented=True, attend_order=marks)
        ).last
        cache = Cache.allocate(model.config, batch_size=2, max_length=30)
        parts = []
        for piece in (slice(0, 4), slice(4, 5), slice(5, 20)):
            batch = Batch(
                ids[:, piece],
                segment_ids=segments[:, piece],
                attention=attention,
                is_segmented=True,
                attend_order=marks[:, piece] if marks is not None else None,
            )
            parts.append(model.trunk(batch, cache=cache).last)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_prefix_order_reads_the_prefix_both_ways(name: str) -> None:
    model = small_model(name)
    ids = random_ids(1, 12)
    order = torch.tensor([[0] * 5 + list(range(1, 8))], dtype=torch.int32)
    base = logits_of(model, Batch(ids, attention="order", attend_order=order))
    for changed in range(12):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % VOCAB
        moved = (logits_of(model, Batch(other, attention="order", attend_order=order)) != base).any(-1)[0]
        expected = order[0] >= order[0, changed]
        assert torch.equal(moved, expected), changed


@pytest.mark.parametrize("name", FAMILIES)
def test_query_stream_sees_only_what_comes_before(name: str) -> None:
    model = small_model(name, query_stream=True)
    generator = torch.Generator().manual_seed(3)
    ids = random_ids(2, 14)
    order = torch.stack([torch.randperm(14, generator=generator) for _ in range(2)]).int()
    segments = torch.tensor([[1] * 14, [1] * 6 + [2] * 5 + [0] * 3], dtype=torch.int32)
    query_at = torch.arange(14).expand(2, -1).flip(1)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        batch = Batch(
            x,
            segment_ids=segments,
            attention="order",
            attend_order=order,
            query_at=query_at,
            is_segmented=True,
            has_padding=True,
        )
        with torch.no_grad():
            hidden = model.trunk(batch)
        return hidden.last, hidden.query

    last, query = run(ids)
    assert query.shape == (2, 14, 32)
    assert query.isfinite().all()
    for changed in range(14):
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % VOCAB
        last_b, query_b = run(other)
        together = segments[:, changed, None] == segments
        later = order > order[:, changed, None]
        content = (last_b != last).any(-1)
        assert torch.equal(content, together & (later | (order == order[:, changed, None])))
        moved = (query_b != query).any(-1)
        assert torch.equal(moved, (together & later).gather(1, query_at))


@pytest.mark.parametrize("name", ["modernbert", "xlnet"])
def test_query_stream_takes_gradients_and_dropout(name: str) -> None:
    model = small_model(name, query_stream=True, hidden_dropout=0.2)
    order = torch.arange(8, dtype=torch.int32).expand(2, -1)
    at = torch.tensor([[1, 5], [7, 2]])
    batch = Batch(random_ids(2, 8), attention="order", attend_order=order, query_at=at)
    hidden = model.trunk(batch, dropout_key=KEY)
    assert not torch.allclose(hidden.query, model.trunk(batch).query)
    hidden.query.sum().backward()
    assert model.trunk.embedding.query.grad.abs().sum() > 0


def test_what_a_model_cannot_do_is_refused() -> None:
    model = small_model("modernbert")
    ids = random_ids(1, 8)
    with pytest.raises(IncompatibleError, match="401 tokens is longer"):
        model(Batch(random_ids(1, 401)))
    with pytest.raises(IncompatibleError, match="token types"):
        model(Batch(ids, token_type_ids=torch.zeros_like(ids)))
    with pytest.raises(IncompatibleError, match="query stream"):
        model(Batch(ids, query_at=torch.zeros(1, 1, dtype=torch.int64)))
    with pytest.raises(IncompatibleError, match="attend_order"):
        model(Batch(ids, attention="order"))
    with pytest.raises(IncompatibleError, match="decoder side"):
        model(Batch(ids, decoder_input_ids=ids))


@pytest.mark.parametrize("name", FAMILIES)
def test_tied_weights_are_one_parameter(name: str) -> None:
    model = small_model(name)
    assert model.head is not None
    assert model.head.weight is model.trunk.embedding.token.weight
    assert sum(p is model.head.weight for p in model.parameters()) == 1
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.trunk.embedding.token.weight
    untied = small_model(name, tie_embeddings=False)
    assert untied.head.weight is not untied.trunk.embedding.token.weight


@pytest.mark.parametrize("name", ["alibi_encoder", "alibi_decoder", "sinusoidal_encoder"])
def test_order_enters_through_every_position_scheme(name: str) -> None:
    """Without positions an encoder gives a token the same output wherever it stands."""
    ids = random_ids(1, 12)
    turned = ids.roll(3, 1)
    for positions, is_blind in (("none", True), (None, False)):
        changes = {"is_causal": False, "local_window": 0, "global_every_n": 1}
        model = small_model(name, **changes, **({"positions": positions} if positions else {}))
        moved = logits_of(model, Batch(turned)).roll(-3, 1)
        assert torch.allclose(moved, logits_of(model, Batch(ids)), atol=1e-4) == is_blind


def test_alibi_reads_the_positions_it_is_given() -> None:
    model = small_model("alibi_decoder")
    ids = random_ids(1, 8)
    whole = logits_of(model, Batch(ids, attention="causal"))
    shifted = torch.arange(5, 13)[None]
    torch.testing.assert_close(logits_of(model, Batch(ids, position_ids=shifted, attention="causal")), whole)
    stretched = torch.arange(8)[None] * 2
    assert not torch.allclose(
        logits_of(model, Batch(ids, position_ids=stretched, attention="causal")), whole, atol=1e-3
    )


def test_shared_layers_equal_their_weights_written_out() -> None:
    """Weights once, work at every depth: the same values as a model of as many layers that are copies."""
    shared = small_model("albert", num_layers=8, num_layer_groups=2, layers_per_group=2, hidden_dropout=0.3)
    config = shared.config
    assert [config.stored_layer(i) for i in range(8)] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert len(shared.trunk.layers) == 4
    copied = build_model(config.updated(num_layer_groups=0, layers_per_group=1), seed=0)
    copied.trunk.embedding.load_state_dict(shared.trunk.embedding.state_dict())
    for depth in range(8):
        copied.trunk.layers[depth].load_state_dict(
            shared.trunk.layers[config.stored_layer(depth)].state_dict()
        )
    batch = Batch(random_ids(2, 9))
    names = [f"hidden.{i}" for i in range(9)] + ["attention.5"]
    # With dropout too: its sites are named by depth, so repetitions of one layer drop different values.
    for key in (None, torch.tensor(5)):
        a, b = (model.trunk(batch, dropout_key=key, capture=names) for model in (shared, copied))
        assert torch.equal(a.last, b.last)
        assert all(torch.equal(a.captured[name], b.captured[name]) for name in names)


def test_groups_are_cut_as_transformers_cuts_them() -> None:
    """In floating point: 9 / (18 / 14) is just below 7."""
    config = small_model("albert").config.updated(num_layers=18, num_layer_groups=14)
    expected = [int(i / (18 / 14)) for i in range(18)]
    assert [config.stored_layer(i) for i in range(18)] == expected
    assert expected != [i * 14 // 18 for i in range(18)]


def test_offset_positions_leave_the_first_rows_of_the_table_unread() -> None:
    model = small_model("roberta", max_length=9, position_offset=3)
    assert model.trunk.embedding.position.weight.shape[0] == 12
    ids = random_ids(2, 9)
    before = logits_of(model, Batch(ids))
    with torch.no_grad():
        model.trunk.embedding.position.weight[:3] += 1
    assert torch.equal(logits_of(model, Batch(ids)), before)
    given = Batch(ids, position_ids=torch.arange(9).expand(2, 9))
    assert torch.equal(logits_of(model, given), before)
    with torch.no_grad():
        model.trunk.embedding.position.weight[11] += 1
    assert not torch.equal(logits_of(model, Batch(ids)), before)
    with pytest.raises(IncompatibleError, match="longer than this model reads"):
        model(Batch(random_ids(1, 10)))


def test_factorised_embeddings_drop_before_they_are_projected() -> None:
    """As the original: where all embedding values but a few are dropped, the stream still moves in every channel."""
    model = small_model("electra", embedding_size=4, hidden_dropout=0.5)
    hidden = model.trunk(Batch(random_ids(2, 9)), dropout_key=torch.tensor(1), capture=["hidden.0"])
    assert hidden.captured["hidden.0"].shape == (2, 9, 32)
    assert (hidden.captured["hidden.0"] != 0).all()


def test_a_query_feels_how_far_away_things_are() -> None:
    """Two queries that see the same tokens: only the distance tells their places apart."""
    model = small_model("alibi_decoder", query_stream=True)
    # Seen on both sides: with all on one side a step away shifts every score by as much, which no softmax feels.
    order = torch.tensor([[0, 0, 0] + [1] * 8 + [0]], dtype=torch.int32)
    batch = Batch(
        random_ids(1, 12), attention="order", attend_order=order, query_at=torch.tensor([[5, 9, 10]])
    )
    query = model.trunk(batch).query
    assert not torch.allclose(query[0, 0], query[0, 1], atol=1e-3)
    blind = small_model("alibi_decoder", query_stream=True, positions="none").trunk(batch).query
    torch.testing.assert_close(blind[0, 0], blind[0, 2])
