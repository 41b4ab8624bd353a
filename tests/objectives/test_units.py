import pytest
import torch

from seedbed.data.draws import Draws
from seedbed.data.store import SPECIAL, WORD
from seedbed.data.views import Rows
from seedbed.objectives.units import choose_spans, choose_targets, geometric_shares, word_begins
from toys import toy_reader

NGRAMS = (0.4, 0.3, 0.2, 0.1)


def rows_of(num_rows, length=64, num_documents=400):
    return toy_reader(length, num_documents=num_documents).read(0, num_rows)


def hidden(rows, column, weights):
    taken = torch.zeros(rows.shape, dtype=torch.bool)
    return taken.scatter(
        1, column, torch.ones_like(column, dtype=torch.bool) if weights is None else weights > 0
    )


def test_span_lengths_are_those_of_the_paper():
    shares = geometric_shares(0.2, 10)
    assert sum(shares) == pytest.approx(1.0)
    assert sum(n * share for n, share in enumerate(shares, start=1)) == pytest.approx(3.8, abs=0.005)
    assert shares[0] == pytest.approx(0.224, abs=0.001)  # figure 2 of SpanBERT begins a little above 0.22


@pytest.mark.parametrize("shares", [NGRAMS, geometric_shares(0.2, 10), (0.0, 1.0)])
@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_spans_hold_whole_words_and_fill_the_count(shares, rate):
    rows, draws = rows_of(120)
    taken = hidden(rows, *choose_spans(rows, draws, rate=rate, shares=shares))
    word = word_begins(rows).long().cumsum(dim=1)
    for row in range(120):
        for number in word[row].unique():
            inside = taken[row][word[row] == number]
            assert inside.all() or not inside.any()
    assert not (taken & ((rows.marks & SPECIAL) != 0)).any()
    full = rows.lengths == 64
    wanted = round(rate * 64)
    assert (taken.sum(dim=1) <= wanted).all()
    assert taken[full].sum() / (wanted * int(full.sum())) > 0.995


def test_spans_begin_at_every_word_alike():
    rows, draws = toy_reader(64, num_documents=800).read(0, 300)
    taken = hidden(rows, *choose_spans(rows, draws, rate=0.15, shares=NGRAMS))
    share = taken.float().mean(dim=0)
    assert (share[4:-4] - share.mean()).abs().max() < 0.08


def reference_spans(rows, draws, row, rate, shares):
    """The same choice word by word, in plain Python."""
    begins = word_begins(rows)[row].tolist()
    length = int(rows.lengths[row])
    starts = [place for place in range(length) if begins[place]]
    ends = [*starts[1:], length]
    is_free = [not int(rows.marks[row, start]) & SPECIAL for start in starts]
    purpose = [
        draws.positions(f"masked_lm span {what}", len(starts))[row].tolist() for what in ("start", "length")
    ]
    missing = max(1, round(rate * length))
    taken = set()
    for first in sorted((w for w in range(len(starts)) if is_free[w]), key=lambda w: (purpose[0][w], w)):
        uniform = (purpose[1][first] + 2**31) / 2**32
        size, total = 1, shares[0]
        while uniform >= total and size < len(shares):
            total += shares[size]
            size += 1
        for word in range(first, min(first + size, len(starts))):
            if not is_free[word] or ends[word] - starts[word] > missing:
                break
            missing -= ends[word] - starts[word]
            is_free[word] = False
            taken.update(range(starts[word], ends[word]))
    return taken


@pytest.mark.parametrize("shares", [NGRAMS, geometric_shares(0.2, 10)])
def test_spans_equal_the_slow_reference(shares):
    reader = toy_reader(40)
    rows, draws = reader.read(0, reader.num_rows)  # the short tail row too
    taken = hidden(rows, *choose_spans(rows, draws, rate=0.3, shares=shares))
    for row in range(len(taken)):
        assert set(taken[row].nonzero()[:, 0].tolist()) == reference_spans(rows, draws, row, 0.3, shares)


def test_the_choice_of_a_row_does_not_depend_on_the_batch():
    reader = toy_reader(48)
    rows, draws = reader.read(0, 8)
    whole = hidden(rows, *choose_spans(rows, draws, rate=0.2, shares=NGRAMS))
    for place in range(8):
        alone = reader.read(place, 1)
        assert torch.equal(hidden(alone[0], *choose_spans(*alone, rate=0.2, shares=NGRAMS))[0], whole[place])


def test_lengths_of_spans_are_those_drawn():
    """In long rows of one-token words few spans are cut or touch: shares 40/30/20/10 %, a mean of 3.8 words."""
    marks = torch.full((60, 4096), WORD, dtype=torch.uint8)
    number = torch.arange(60)
    rows = Rows(marks.long(), marks, torch.full((60,), 4096), number, number * 0, is_full=True)
    draws = Draws.for_rows(0, "windows", rows.epochs, rows.row_ids)

    def lengths(shares):
        taken = hidden(rows, *choose_spans(rows, draws, rate=0.02, shares=shares))
        edges = torch.nn.functional.pad(taken.long(), (1, 1)).diff(dim=1)
        starts, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
        return (ends - starts)[:, 1]

    found = lengths(NGRAMS).bincount(minlength=5)[1:5] / len(lengths(NGRAMS))
    assert (found - torch.tensor(NGRAMS)).abs().max() < 0.03
    assert abs(float(lengths(geometric_shares(0.2, 10)).float().mean()) - 3.8) < 0.15


def test_units_may_be_coarser_than_words():
    rows, draws = rows_of(50)
    begins = word_begins(rows)
    begins[:, 1::2] &= False  # join every word that begins at an odd place to the one before it
    taken = hidden(rows, *choose_targets(rows, draws, rate=0.3, begins=begins))
    unit = begins.long().cumsum(dim=1)
    for row in range(50):
        for number in unit[row].unique():
            inside = taken[row][(unit[row] == number) & ((rows.marks[row] & SPECIAL) == 0)]
            assert inside.all() or not inside.any()
