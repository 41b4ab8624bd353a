"""What holds for every architecture of two stacks, and for descriptions of two stacks that no family builds."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError, MemoryLimitError
from seedbed.models.cache import Cache
from seedbed.models.encoder_decoder import EncoderDecoder
from seedbed.models.language_model import LanguageModel
from seedbed.models.layers.dropout import Dropout
from small_models import TWO_STACKS, VOCAB, logits_of, random_ids, small_model

KEY = torch.tensor(7, dtype=torch.int32)
# A modern block in two stacks: rotary positions, grouped queries, gates, mixed values.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rotary": (
        "t5",
        {
            "positions": "rope",
            "num_kv_heads": 2,
            "query_key_norm": True,
            "value_residual": True,
            "num_decoder_layers": 2,
        },
    ),
    "alibi": ("bart", {"positions": "alibi", "position_offset": 0, "num_decoder_layers": 4}),
}
FAMILIES = [*TWO_STACKS, *VARIANTS]
# 300 is above the length where the fused kernel takes over on a CPU.
LENGTHS = [(20, 13), (300, 20), (20, 300)]


def make(name: str, **changes: Any) -> LanguageModel:
    family, own = VARIANTS.get(name, (name, {}))
    return small_model(family, **{**own, **changes})


def batch_of(length: int = 20, decoder_length: int = 13, rows: int = 2, **fields: Any) -> Batch:
    return Batch(
        random_ids(rows, length), decoder_input_ids=random_ids(rows, decoder_length, seed=1), **fields
    )


def segments_of(lengths: list[int], total: int, rows: int = 2) -> Tensor:
    """Segments 1, 2, ... of these lengths; the rest is padding."""
    marks = [k for k, length in enumerate(lengths, 1) for _ in range(length)]
    return torch.tensor([marks + [0] * (total - len(marks))], dtype=torch.int32).expand(rows, -1)


def changed(ids: Tensor, part: slice, by: int = 1) -> Tensor:
    other = ids.clone()
    other[:, part] = (other[:, part] + by) % VOCAB
    return other


@pytest.mark.parametrize(("length", "decoder_length"), LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_future_decoder_token_never_changes_past_logits(
    name: str, length: int, decoder_length: int
) -> None:
    model = make(name)
    batch = batch_of(length, decoder_length)
    base = logits_of(model, batch)
    assert base.shape == (2, decoder_length, VOCAB)
    cut = decoder_length // 2
    assert batch.decoder_input_ids is not None
    other = replace(batch, decoder_input_ids=changed(batch.decoder_input_ids, slice(cut, None)))
    moved = logits_of(model, other)
    assert torch.equal(moved[:, :cut], base[:, :cut])
    assert not torch.allclose(moved[:, cut:], base[:, cut:])
    # Every decoder token reads every encoder token.
    for place in (0, length - 1):
        moved = logits_of(model, replace(batch, input_ids=changed(batch.input_ids, slice(place, place + 1))))
        assert (moved != base).any(-1).all()


@pytest.mark.parametrize(("length", "decoder_length"), LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_neighbour_never_changes_a_pair(name: str, length: int, decoder_length: int) -> None:
    model = make(name)
    batch = batch_of(length, decoder_length)
    first, second = length // 3, length // 4
    decoder_first, decoder_second = decoder_length // 4, decoder_length // 3
    packed = replace(
        batch,
        segment_ids=segments_of([first, second, 3], length),
        decoder_segment_ids=segments_of([decoder_first, decoder_second, 2], decoder_length),
        is_segmented=True,
        has_padding=True,
    )
    base = logits_of(model, packed)
    assert base.isfinite().all()
    inside = slice(decoder_first, decoder_first + decoder_second)
    assert batch.decoder_input_ids is not None
    for end in (slice(0, first), slice(first + second, None)):
        other = replace(packed, input_ids=changed(batch.input_ids, end))
        assert torch.equal(logits_of(model, other)[:, inside], base[:, inside])
    for end in (slice(0, decoder_first), slice(decoder_first + decoder_second, None)):
        other = replace(packed, decoder_input_ids=changed(batch.decoder_input_ids, end))
        assert torch.equal(logits_of(model, other)[:, inside], base[:, inside])
    # Nor does its place in the row: the pair alone gives the same.
    alone = Batch(
        batch.input_ids[:, first : first + second], decoder_input_ids=batch.decoder_input_ids[:, inside]
    )
    torch.testing.assert_close(logits_of(model, alone), base[:, inside], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize(("length", "decoder_length"), LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_padding_of_either_side_does_not_matter(
    name: str, length: int, decoder_length: int, is_segmented: bool
) -> None:
    model = make(name)
    batch = batch_of(length, decoder_length)
    assert batch.decoder_input_ids is not None
    for short, decoder_short in ((length - 6, decoder_length), (length, decoder_length - 5), (9, 4)):
        padded = replace(
            batch,
            segment_ids=segments_of([short], length),
            decoder_segment_ids=segments_of([decoder_short], decoder_length),
            has_padding=True,
            is_segmented=is_segmented,
        )
        base = logits_of(model, padded)
        assert base.isfinite().all()
        other = replace(
            padded,
            input_ids=changed(batch.input_ids, slice(short, None)),
            decoder_input_ids=changed(batch.decoder_input_ids, slice(decoder_short, None)),
        )
        assert torch.equal(logits_of(model, other)[:, :decoder_short], base[:, :decoder_short])
        alone = Batch(
            batch.input_ids[:, :short], decoder_input_ids=batch.decoder_input_ids[:, :decoder_short]
        )
        torch.testing.assert_close(logits_of(model, alone), base[:, :decoder_short], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_anything_to_read_cross_attention_mixes_nothing(name: str) -> None:
    """A segment of the decoder alone reads no stranger's text: it is as if its encoder segment were not there."""
    model = make(name)
    batch = batch_of(
        segment_ids=segments_of([20], 20), decoder_segment_ids=segments_of([6, 7], 13), is_segmented=True
    )
    base = logits_of(model, batch)
    assert base.isfinite().all()
    moved = logits_of(model, replace(batch, input_ids=changed(batch.input_ids, slice(None))))
    assert torch.equal(moved[:, 6:], base[:, 6:])
    assert not torch.allclose(moved[:, :6], base[:, :6])
    model.trunk(batch).last.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_weight_and_the_embedding_is_one(name: str) -> None:
    model = make(name)
    assert isinstance(model.trunk, EncoderDecoder)
    assert model.trunk.decoder.embedding.token is model.trunk.encoder.embedding.token
    twin = copy.deepcopy(model)
    assert twin.trunk.decoder.embedding.token.weight is twin.trunk.encoder.embedding.token.weight
    names = [key for key, _ in model.named_parameters() if "token" in key]
    assert names == ["trunk.encoder.embedding.token.weight"]
    model.logits(model(batch_of()).last).logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    tied = make(name, tie_embeddings=True)
    assert tied.head is not None
    assert tied.head.weight is tied.trunk.embedding.token.weight


@pytest.mark.parametrize("name", FAMILIES)
def test_computing_only_target_places_changes_nothing(name: str) -> None:
    at = torch.tensor([3, 4, 14, 25])
    results = []
    for chosen in (None, at):
        model = make(name, hidden_dropout=0.2, attention_dropout=0.1)
        hidden = model.trunk(batch_of(), dropout_key=KEY, at=chosen)
        last = hidden.last.flatten(0, 1)[at] if chosen is None else hidden.last
        model.logits(last).logsumexp(-1).sum().backward()
        results.append((last.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (full, gradients), (part, others) = results
    assert part.shape == (4, 32)
    torch.testing.assert_close(full, part)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_gives_what_the_whole_gives(name: str, is_segmented: bool) -> None:
    model = make(name)
    batch = batch_of(rows=3)
    if is_segmented:
        batch = replace(
            batch,
            segment_ids=segments_of([8, 9], 20, rows=3),
            decoder_segment_ids=segments_of([5, 8], 13, rows=3),
            is_segmented=True,
            has_padding=True,
        )
    whole = logits_of(model, batch)
    cache = Cache.allocate(model.config, batch_size=3, max_length=13)
    encoder_runs = []
    assert isinstance(model.trunk, EncoderDecoder)
    model.trunk.encoder.register_forward_hook(lambda *_: encoder_runs.append(1))
    parts = []
    for piece in (slice(0, 4), slice(4, 5), slice(5, 13)):
        assert batch.decoder_input_ids is not None
        marks = batch.decoder_segment_ids
        new = replace(
            batch,
            # After the first call the encoder's side is not looked at.
            input_ids=batch.input_ids if piece.start == 0 else torch.zeros_like(batch.input_ids[:, :0]),
            decoder_input_ids=batch.decoder_input_ids[:, piece],
            decoder_segment_ids=None if marks is None else marks[:, piece],
        )
        parts.append(model.trunk(new, cache=cache).last)
    logits = model.logits(torch.cat(parts, 1))
    assert (logits - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))
    assert encoder_runs == [1]
    with pytest.raises(MemoryLimitError, match="21 tokens do not fit"):
        model.trunk(new, cache=cache)


@pytest.mark.parametrize("name", FAMILIES)
def test_capture_names_the_side(name: str) -> None:
    model = make(name)
    batch = batch_of()
    names = [
        "encoder.hidden.1",
        "encoder.attention.0",
        "encoder.last",
        "decoder.key.1",
        "decoder.attention.1",
    ]
    names += ["decoder.cross_attention.0", "decoder.hidden.0"]
    hidden = model.trunk(batch, capture=names)
    assert set(hidden.captured) == set(names)
    cross = hidden.captured["decoder.cross_attention.0"]
    assert cross.shape == (2, 4, 13, 20)
    torch.testing.assert_close(cross.sum(-1), torch.ones(2, 4, 13))
    torch.testing.assert_close(hidden.captured["encoder.last"], model.trunk.encode(batch).last)
    torch.testing.assert_close(hidden.last, model.trunk(batch).last)
    for wrong in ("hidden.1", "encoder.cross_attention.0", "decoder.cross_attention.9"):
        with pytest.raises(IncompatibleError, match="cannot capture"):
            model.trunk(batch, capture=[wrong])


@pytest.mark.parametrize("name", TWO_STACKS)
def test_both_attention_paths_agree(name: str) -> None:
    model = make(name)
    batch = batch_of(
        300,
        280,
        segment_ids=segments_of([100, 180], 300),
        decoder_segment_ids=segments_of([120, 150], 280),
        is_segmented=True,
        has_padding=True,
    )
    fused = model.trunk(batch)
    layers = range(model.config.num_layers)
    names = [f"{s}.{k}.{i}" for s, k in (("encoder", "attention"), ("decoder", "attention")) for i in layers]
    names += [f"decoder.cross_attention.{i}" for i in range(model.config.num_decoder_layers)]
    torch.testing.assert_close(fused.last, model.trunk(batch, capture=names).last, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_follows_the_row_and_needs_a_key(name: str) -> None:
    model = make(name, hidden_dropout=0.3, attention_dropout=0.2)
    model.train()
    batch = batch_of(rows=4, row_ids=torch.tensor([5, 1 << 40, 7, 9]))
    assert torch.equal(model.trunk(batch).last, model.eval().trunk(batch).last)
    whole = model.trunk(batch, dropout_key=KEY).last
    assert not torch.allclose(whole, model.trunk(batch).last, atol=1e-2)
    assert batch.decoder_input_ids is not None
    assert batch.row_ids is not None
    part = replace(
        batch,
        input_ids=batch.input_ids[[3, 1]],
        decoder_input_ids=batch.decoder_input_ids[[3, 1]],
        row_ids=batch.row_ids[[3, 1]],
    )
    torch.testing.assert_close(model.trunk(part, dropout_key=KEY).last, whole[[3, 1]], atol=1e-5, rtol=1e-5)


def test_every_dropout_site_of_both_sides_draws_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites with one key and number would drop the same channels of the same tokens."""
    sites: list[tuple[int, int]] = []
    for kind in ("hidden", "attention"):
        original = getattr(Dropout, kind)

        def recorded(
            self: Dropout, values: Tensor, *, site: int, _run: Any = original, **rest: Any
        ) -> Tensor:
            sites.append((int(self.key), site))
            return _run(self, values, site=site, **rest)

        monkeypatch.setattr(Dropout, kind, recorded)
    model = make("bart", num_decoder_layers=2, hidden_dropout=0.1, attention_dropout=0.1)
    model.trunk(batch_of(), dropout_key=KEY)
    # Encoder layers have three each, decoder layers five; and both embeddings.
    assert len(sites) == 3 * 3 + 2 * 5 + 2
    assert len(set(sites)) == len(sites)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_encoders_embedding_delta_moves_the_output(name: str) -> None:
    model = make(name)
    batch = batch_of()
    delta = torch.zeros(2, 20, 32, requires_grad=True)
    model.logits(model.trunk(batch, embedding_delta=delta).last).logsumexp(-1).sum().backward()
    assert delta.grad is not None
    assert (delta.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", TWO_STACKS)
def test_bfloat16_stays_close_to_float32(name: str) -> None:
    """Stated bound: over unit-scale logits, autocast moves a log-probability by less than 0.02 on average, 0.2 at most."""
    from seedbed.models import MODELS
    from seedbed.models.language_model import build_model

    section = MODELS[name].model_validate({"preset": "tiny"})
    model = build_model(section.build(vocab_size=VOCAB), seed=0)
    batch = batch_of(64, 48, rows=4)
    exact = logits_of(model, batch).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        half = logits_of(model, batch)
    assert half.dtype == torch.bfloat16
    error = (half.float().log_softmax(-1) - exact).abs()
    assert error.mean() < 0.02
    assert error.max() < 0.2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_comes_back(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.config == model.config
    assert torch.equal(logits_of(again, batch_of()), logits_of(model, batch_of()))


def test_what_does_not_fit_is_refused() -> None:
    model = make("t5")
    with pytest.raises(IncompatibleError, match="no decoder side"):
        model(Batch(random_ids(1, 8)))
    with pytest.raises(IncompatibleError, match="one stack only"):
        small_model("llama")(batch_of(attention="causal"))
    with pytest.raises(IncompatibleError, match="401 tokens is longer"):
        model(batch_of(20, 401))
    for wrong in ({"is_causal": True}, {"query_stream": True}, {"num_layer_groups": 1}):
        with pytest.raises(ValidationError):
            model.config.updated(**wrong)
    with pytest.raises(ValidationError, match="relative_max_distance"):
        model.config.updated(relative_buckets=32, relative_max_distance=16)
