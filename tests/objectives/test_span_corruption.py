"""Span corruption and the mixture of denoisers: what is cut out is written, nothing is lost, shares are the papers'."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from seedbed.errors import IncompatibleError
from seedbed.objectives.combination import UL2Config, entries_of
from seedbed.objectives.span_corruption import SpanCorruptionConfig, random_spans
from toys import RESERVED, VOCABULARY, toy_model, toy_reader

LENGTH = 32
END = RESERVED.separator_id


def build(length=LENGTH, vocabulary=RESERVED, **changes):
    return SpanCorruptionConfig(**changes).build(vocabulary, row_length=length, is_segmented=False)


def rows_of(objective, count=20):
    return toy_reader(objective.raw_row_length, num_documents=300).read(0, count)


def spans_of(written: list[int]) -> dict[int, list[int]]:
    """The spans by sentinel, of what a decoder writes (the end left away)."""
    spans: dict[int, list[int]] = {}
    for token in written[:-1]:
        if token in RESERVED.unused_ids:
            assert token not in spans
            spans[token] = current = []
        else:
            current.append(token)
    return spans


def restored(read: list[int], spans: dict[int, list[int]]) -> list[int]:
    out: list[int] = []
    for token in read[:-1]:
        out += spans.get(token, [token])
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise_density": 0.5},
        {"mean_span_length": 8.0, "noise_density": 0.5},
        {"layout": "suffix", "noise_density": 0.25},
    ],
)
def test_putting_the_spans_back_gives_the_row(changes):
    objective = build(**changes)
    rows, draws = rows_of(objective)
    batch, targets = objective.make_batch(rows, draws)
    written = targets["span_corruption"].values.reshape(len(rows.ids), -1)
    for row, read, answer in zip(rows.ids.tolist(), batch.input_ids.tolist(), written.tolist(), strict=True):
        assert read[-1] == answer[-1] == END
        spans = spans_of(answer)
        assert list(spans) == list(RESERVED.unused_ids[: len(spans)])  # in order
        assert all(spans.values())  # no span is empty
        assert restored(read, spans) == row
    assert torch.equal(batch.decoder_input_ids[:, 1:], written[:, :-1])
    assert (batch.decoder_input_ids[:, 0] == RESERVED.pad_id).all()


def test_density_and_length_are_the_papers():
    """15 % of the tokens, spans of 3 on average, every row the same number."""
    objective = build(128, replace(RESERVED, unused_ids=tuple(range(64, 80)) * 2))
    noise, spans = objective.sizes(objective.raw_row_length)
    assert noise / objective.raw_row_length == pytest.approx(0.15, abs=0.005)
    assert noise / spans == pytest.approx(3.0, abs=0.2)
    assert objective.raw_row_length - noise + spans + 1 == 128  # the encoder is filled


def test_all_segmentations_are_equally_likely():
    """Four tokens of noise in two spans, six of text: 3 x 5 layouts, as often each."""
    count = 15_000
    draws = torch.randint(
        -(2**31), 2**31 - 1, (2, count, 10), generator=torch.Generator().manual_seed(0)
    ).int()
    found = random_spans(10, 4, 2, draws[0], draws[1])
    assert (found.sum(dim=1) == 4).all()
    assert not found[:, 0].any()
    assert found[:, -1].all()
    _, counts = torch.unique(found, dim=0, return_counts=True)
    assert len(counts) == 15
    assert (counts.float() - count / 15).abs().max() < 5 * (count / 15) ** 0.5


def test_loss_equals_transformers():
    """The same weights in transformers' T5, with labels, give the same mean loss."""
    import transformers

    from seedbed.models.huggingface import write_huggingface

    objective = build()
    model = toy_model("t5", vocabulary=RESERVED)
    rows, draws = rows_of(objective, 6)
    batch, targets = objective.make_batch(rows, draws)
    loss = objective.losses(objective.modules(model.trunk, model.head), batch, targets)[
        "span_corruption"
    ].loss
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        write_huggingface(model, Path(folder))
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
        labels = targets["span_corruption"].values.reshape(6, -1)
        with torch.no_grad():
            expected = theirs(input_ids=batch.input_ids, labels=labels)
    assert loss.item() / labels.numel() == pytest.approx(expected.loss.item(), rel=1e-4)


def test_short_rows_are_padded_and_padding_counts_nothing():
    objective = build()
    reader = toy_reader(objective.raw_row_length)
    last = [i for i in range(reader.num_rows) if not reader.read(i, 1)[0].is_full]
    rows, draws = reader.read(last[0] - 1, 3)
    batch, targets = objective.make_batch(rows, draws)
    assert batch.has_padding
    model = toy_model("t5", vocabulary=RESERVED)
    modules = objective.modules(model.trunk, model.head)
    whole = objective.losses(modules, batch, targets)["span_corruption"].loss
    target, total = targets["span_corruption"], 0.0
    depth = batch.decoder_input_ids.shape[1]
    for row in range(3):
        keep = batch.segment_ids[row] > 0 if batch.segment_ids is not None else slice(None)
        real = target.weights.reshape(3, -1)[row] > 0
        alone = type(batch)(
            batch.input_ids[row : row + 1, keep],
            decoder_input_ids=batch.decoder_input_ids[row : row + 1, real],
        )
        logits = model.head(model.trunk(alone).last)[0]
        total += F.cross_entropy(logits, target.values.reshape(3, depth)[row, real], reduction="sum").item()
    assert whole.item() == pytest.approx(total, rel=1e-4)


def test_few_sentinels_make_rows_shorter_and_none_are_refused():
    many = build(256, replace(RESERVED, unused_ids=tuple(range(64, 80)) * 2))
    few = build(256)
    assert few.raw_row_length < many.raw_row_length
    assert few.sizes(few.raw_row_length)[1] <= 10
    with pytest.raises(IncompatibleError, match="fits no text"):
        build(vocabulary=VOCABULARY)


def test_documents_cannot_be_kept_apart():
    with pytest.raises(IncompatibleError, match="keep documents apart"):
        SpanCorruptionConfig().build(RESERVED, row_length=LENGTH, is_segmented=True)


def test_ul2_is_seven_denoisers_with_their_marks():
    entries = entries_of(UL2Config())
    assert len(entries) == 7
    marks = set()
    for entry in entries:
        objective = entry.objective.build(RESERVED, row_length=LENGTH, is_segmented=False)
        batch, _ = objective.make_batch(*rows_of(objective, 3))
        assert batch.input_ids.shape[1] <= LENGTH
        assert batch.decoder_input_ids.shape[1] <= LENGTH
        assert len(set(batch.input_ids[:, 0].tolist())) == 1
        marks.add(int(batch.input_ids[0, 0]))
    assert len(marks) == 3
    assert marks <= set(RESERVED.unused_ids[-6:])


@pytest.mark.parametrize("changes", [{}, {"noise_density": 0.5}, {"layout": "suffix", "noise_density": 0.25}])
def test_the_layout_costs_the_logarithm_of_the_ways_to_cut_it(changes):
    """Counted: the different cuts of n tokens into s spans, among all ways to put s - 1 borders between them."""
    objective = build(**changes)
    rows, draws = rows_of(objective)
    short = replace(rows, lengths=torch.where(torch.arange(len(rows.ids)) == 3, 12, rows.lengths))
    short = replace(
        short, ids=torch.where(torch.arange(rows.ids.shape[1]) < short.lengths[:, None], rows.ids, 0)
    )
    _, targets = objective.make_batch(short, draws)
    expected = 0.0
    for length in short.lengths.tolist():
        noise, spans = objective.sizes(length)
        ways = sum(1 for _ in itertools.combinations(range(1, noise), spans - 1))
        expected += math.log(ways)
    assert objective.layout_nats("span_corruption", targets["span_corruption"]) == pytest.approx(expected)
    assert (expected == 0.0) == (changes.get("layout") == "suffix")
