"""Denoising: sentences shuffled, spans behind one mask each, the whole text written."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from seedbed.data.store import DOCUMENT, SENTENCE, SPECIAL
from seedbed.data.views import RowReader, WindowView
from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.denoising import DenoisingConfig, shuffled_sentences
from toys import RESERVED, ToySplit, toy_model, toy_reader

LENGTH = 32


class Sentences(ToySplit):
    """Every third word begins a sentence."""

    def __init__(self, num_documents=300):
        super().__init__(num_documents)
        words = (self.marks & 4) != 0
        self.marks[words & (words.cumsum() % 3 == 0) & ((self.marks & SPECIAL) == 0)] |= SENTENCE


def build(**changes):
    return DenoisingConfig(**changes).build(RESERVED, row_length=LENGTH, is_segmented=False)


def rows_of(objective, count=30):
    view = WindowView(Sentences(), length=objective.raw_row_length)
    return RowReader(view, name="windows", seed=0).read(0, count)


def test_the_decoder_writes_the_row():
    objective = build()
    rows, draws = rows_of(objective)
    batch, targets = objective.make_batch(rows, draws)
    written = targets["denoising"].values.reshape(len(rows.ids), -1)
    assert torch.equal(written[:, :-1], rows.ids)
    assert (written[:, -1] == RESERVED.separator_id).all()
    assert torch.equal(batch.decoder_input_ids[:, 1:], written[:, :-1])


def test_thirty_percent_are_behind_masks_and_the_rest_is_read_in_order():
    objective = build(shuffle_sentences=False)
    rows, draws = rows_of(objective)
    batch, _ = objective.make_batch(rows, draws)
    masked, spans = objective.sizes(objective.raw_row_length)
    assert masked == round(0.3 * objective.raw_row_length)
    for row, read in zip(rows.ids.tolist(), batch.input_ids[:, 1:-1].tolist(), strict=True):
        assert read.count(RESERVED.mask_id) == spans
        kept = [token for token in read if token != RESERVED.mask_id]
        assert len(kept) == len(row) - masked
        rest = iter(row)
        assert all(token in rest for token in kept)  # a subsequence


def test_span_lengths_are_poisson_given_their_sum():
    """Evenly multinomial: with many spans, shares of lengths 0, 1, 2 come close to Poisson(3)'s."""
    objective = build()
    owners = torch.randint(-(2**31), 2**31 - 1, (4000, 60), generator=torch.Generator().manual_seed(1)).int()
    slots = torch.randint(-(2**31), 2**31 - 1, (4000, 60), generator=torch.Generator().manual_seed(2)).int()
    ids = torch.arange(60).expand(4000, -1) + 100
    read = objective._infilled(ids, slots, owners)
    masked, spans = objective.sizes(60)
    lengths = Counter()
    for line in read.tolist():
        # A single mask between two kept tokens hides the gap between them.
        for i in range(1, len(line) - 1):
            if line[i] == RESERVED.mask_id and line[i - 1] >= 100 and line[i + 1] >= 100:
                lengths[line[i + 1] - line[i - 1] - 1] += 1
    total = sum(lengths.values())
    share = torch.tensor([1 / spans])
    binomial = torch.distributions.Binomial(masked, share)
    for length in range(6):
        expected = float(binomial.log_prob(torch.tensor([float(length)])).exp())
        assert lengths[length] / total == pytest.approx(expected, abs=0.02)
    mean = sum(length * count for length, count in lengths.items()) / total
    assert mean == pytest.approx(masked / spans, abs=0.1)


def test_sentences_are_moved_whole_within_their_document():
    objective = build()
    rows, draws = rows_of(objective, 60)
    shuffled = shuffled_sentences(rows, draws)
    moved = 0
    for ids, marks, out in zip(rows.ids.tolist(), rows.marks.tolist(), shuffled.tolist(), strict=True):
        pieces: list[list[tuple[int, ...]]] = [[()]]
        for token, mark in zip(ids, marks, strict=True):
            if mark & SPECIAL:
                pieces.append([()])
            elif mark & (SENTENCE | DOCUMENT):
                pieces[-1].append((token,))
            else:
                pieces[-1][-1] += (token,)
        rest = list(out)
        for number, document in enumerate(pieces):
            size = sum(map(len, document))
            own, rest = rest[:size], rest[size:]
            # The document's sentences, in some order, are exactly what stands in its place.
            remaining = sorted((piece for piece in document if piece), key=len, reverse=True)
            assert Counter(own) == Counter(token for piece in document for token in piece)
            for piece in remaining:
                assert any(tuple(own[i : i + len(piece)]) == piece for i in range(len(own)))
            if number < len(pieces) - 1:
                assert rest.pop(0) == RESERVED.separator_id
        moved += out != ids
    assert moved > 40


def test_a_bart_trains_on_it():
    objective, model = build(), toy_model("bart", vocabulary=RESERVED)
    objective.check(model.config)
    batch, targets = objective.make_batch(*toy_reader(objective.raw_row_length).read(0, 4))
    loss = objective.losses(objective.modules(model.trunk, model.head), batch, targets)["denoising"].loss
    loss.backward()
    assert all(p.grad is not None for p in model.trunk.parameters())


@pytest.mark.parametrize("broken", ["mask", "segments"])
def test_what_it_cannot_do_is_refused(broken):
    vocabulary = RESERVED
    if broken == "mask":
        vocabulary = Vocabulary(vocab_size=64, separator_id=3, special_ids=frozenset([3]), pad_id=0)
    with pytest.raises(IncompatibleError):
        DenoisingConfig().build(vocabulary, row_length=LENGTH, is_segmented=broken == "segments")


def test_deshuffling_reads_every_token_in_another_order():
    objective = build(shuffle_sentences=False, shuffle_tokens=True, mask_rate=0.0)
    rows, draws = rows_of(objective)
    batch, targets = objective.make_batch(rows, draws)
    written = targets["denoising"].values.reshape(len(rows.ids), -1)[:, :-1]
    assert torch.equal(written, rows.ids)
    read = batch.input_ids[:, 1:-1]
    assert torch.equal(read.sort(dim=1).values, rows.ids.sort(dim=1).values)
    moved = (read != rows.ids).float().mean()
    assert moved > 0.8
    with pytest.raises(ValueError, match="shuffle_sentences=false"):
        DenoisingConfig(shuffle_tokens=True)
