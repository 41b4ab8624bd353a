from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch

from seedbed.batch import Batch, Targets
from seedbed.errors import DataError, IncompatibleError
from seedbed.evaluation import baselines
from seedbed.evaluation.baselines import Baselines, corpus_baselines, term_baselines
from seedbed.evaluation.intrinsic import EvaluationSet
from seedbed.objectives.base import Vocabulary

VOCAB, PAD, CLS, SEP, MASK = 40, 0, 2, 3, 4
VOCABULARY = Vocabulary(VOCAB, SEP, frozenset(range(6)), pad_id=PAD, cls_id=CLS, sep_id=SEP, mask_id=MASK)


class Stream:
    """A split in memory."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = np.array(ids, dtype=np.uint16)
        self.longest_slice = 0

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        self.longest_slice = max(self.longest_slice, stop - start)
        return self.ids[start:stop], np.zeros(stop - start, np.uint8)


def _text(count: int, seed: int) -> list[int]:
    """Tokens with structure: the next depends on the last; a separator now and then."""
    rng = np.random.default_rng(seed)
    out, last = [], 7
    for _ in range(count):
        if rng.random() < 0.05:
            last = SEP
        elif rng.random() < 0.7:
            last = 6 + (3 * last + 1) % (VOCAB - 6)
        else:
            last = 6 + int((VOCAB - 6) * rng.random() ** 2)
        out.append(last)
    return out


def _slow(
    queries: list[tuple[int | None, int, float]], train: list[int], possible: set[int]
) -> tuple[float, float, float]:
    """The definition, with dictionaries."""
    unigrams = Counter(t for t in train if t in possible)
    pairs = Counter((a, b) for a, b in itertools.pairwise(train) if b in possible)
    lefts: Counter[int] = Counter()
    for (a, _), count in pairs.items():
        lefts[a] += count
    n, v = sum(unigrams.values()), len(possible)
    total = sum(weight for _, _, weight in queries)

    def unigram(w: int) -> float:
        return (unigrams[w] + 1) / (n + v)

    def bigram(h: int | None, w: int, k: float) -> float:
        if h is None or lefts[h] == 0:
            return unigram(w)
        mix = lefts[h] / (lefts[h] + k)
        return mix * pairs[h, w] / lefts[h] + (1 - mix) * unigram(w)

    return (
        math.log(v),
        -sum(weight * math.log(unigram(w)) for _, w, weight in queries) / total,
        min(
            -sum(weight * math.log(bigram(h, w, k)) for h, w, weight in queries) / total
            for k in baselines._STRENGTHS
        ),
    )


def _masked_set(rows: list[list[int]], chosen: list[list[int]]) -> EvaluationSet:
    """Rows behind [CLS] with the chosen columns (of the row) masked; in batches of two rows."""
    batches = []
    for start in range(0, len(rows), 2):
        ids = torch.tensor([[CLS, *row] for row in rows[start : start + 2]])
        length = ids.shape[1]
        at = torch.tensor(
            [i * length + 1 + c for i, columns in enumerate(chosen[start : start + 2]) for c in columns]
        )
        values = ids.flatten()[at]
        hidden = ids.flatten().clone()
        hidden[at] = MASK
        batches.append((Batch(hidden.reshape(ids.shape)), {"masked_lm": Targets(at, values)}))
    return EvaluationSet(batches, len(rows), len(rows))


def _close(found: Baselines, expected: tuple[float, float, float]) -> None:
    assert (found.uniform, found.unigram, found.bigram) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("chunk", [7, 100, 1 << 19])
def test_masked_targets_match_the_definition(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_CHUNK_TOKENS", chunk)
    train, valid = _text(3000, 1), _text(120, 2)
    rows = [valid[i : i + 20] for i in range(0, 120, 20)]
    # Neighbours are hidden together, and a row's first and last token too: the left must be the original one.
    chosen = [[c for c in (0, 5, 6, 7, 13, 19) if row[c] != SEP] for row in rows]
    stream = Stream(train)
    found = corpus_baselines(_masked_set(rows, chosen), stream, VOCABULARY)
    queries = [
        (row[c - 1] if c else None, row[c], 1.0)
        for row, columns in zip(rows, chosen, strict=True)
        for c in columns
    ]
    _close(found, _slow(queries, train, set(range(6, VOCAB))))
    assert found.num_targets == len(queries)
    assert found.train_tokens == 3000
    assert stream.longest_slice <= chunk
    most = Counter(t for t in train if t != SEP).most_common(1)[0][0]
    assert found.unigram_accuracy == sum(w == most for _, w, _ in queries) / len(queries)
    assert found.bigram < found.unigram < found.uniform  # the text has structure


def test_causal_targets_match_the_definition() -> None:
    train, valid = _text(2000, 3), _text(90, 4)
    ids = torch.tensor(valid).reshape(3, 30)
    inputs = torch.cat([torch.full((3, 1), SEP), ids[:, :-1]], dim=1)
    weights = torch.ones(90)
    weights[80:] = 0.0  # the end of a short row
    targets = Targets(torch.arange(90), ids.flatten(), weights)
    found = corpus_baselines(
        EvaluationSet([(Batch(inputs, attention="causal"), {"causal_lm": targets})], 3, 3),
        Stream(train),
        VOCABULARY,
    )
    queries = [(valid[i - 1] if i % 30 else None, valid[i], 1.0) for i in range(80)]
    _close(found, _slow(queries, train, set(range(6, VOCAB)) | {SEP}))


def test_unseen_tokens_and_lefts_stay_finite() -> None:
    rows = [[30, 31, 32, 33]]
    found = corpus_baselines(_masked_set(rows, [[0, 1, 2, 3]]), Stream([6, 7, 6, 7]), VOCABULARY)
    assert math.isfinite(found.bigram)
    _close(
        found,
        _slow([(None, 30, 1.0), (30, 31, 1), (31, 32, 1), (32, 33, 1)], [6, 7, 6, 7], set(range(6, VOCAB))),
    )


def test_weights_count() -> None:
    ids = torch.tensor([[6, 7, 8, 9]])
    train = [6, 7, 6, 7, 8, 6, 9, 9]
    targets = Targets(torch.tensor([1, 2]), torch.tensor([7, 8]), torch.tensor([0.5, 2.0]))
    found = corpus_baselines(EvaluationSet([(Batch(ids), {"m": targets})], 1, 1), Stream(train), VOCABULARY)
    _close(found, _slow([(6, 7, 0.5), (7, 8, 2.0)], train, set(range(6, VOCAB))))
    assert found.num_targets == 2.5


def test_a_text_that_follows_one_rule_has_a_bigram_loss_near_zero() -> None:
    cycle = list(range(6, 26)) * 200
    found = corpus_baselines(_masked_set([cycle[:40]], [list(range(1, 40))]), Stream(cycle), VOCABULARY)
    assert found.bigram < 0.01
    assert found.unigram == pytest.approx(math.log(20), abs=0.01)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError):
        corpus_baselines(EvaluationSet([], 0, 0), Stream([6, 7]), VOCABULARY)


@pytest.mark.parametrize("stream", ["decoder", "query"])
def test_every_stream_sees_the_same_left_token(stream: str) -> None:
    """The same tokens predicted in a decoder, or by a query stream, have the baselines of a masked row."""
    train, row, columns = [6, 7, 8, 6, 7, 9, 6, 7, 8], [6, 7, 8, 6, 7], [1, 4]
    masked = corpus_baselines(_masked_set([row], [columns]), Stream(train), VOCABULARY)
    ids = torch.tensor([[CLS, *row]])
    values = torch.tensor([row[c] for c in columns])
    if stream == "decoder":
        batch = Batch(torch.tensor([[MASK]]), decoder_input_ids=ids)
        targets = Targets(torch.tensor(columns), values, stream="decoder")
    else:
        batch = Batch(ids, query_at=torch.tensor([[c + 1 for c in columns]]), attention="order")
        targets = Targets(torch.arange(2), values, stream="query")
    found = corpus_baselines(EvaluationSet([(batch, {"t": targets})], 1, 1), Stream(train), VOCABULARY)
    assert found.losses() == pytest.approx(masked.losses())


def test_values_that_are_no_tokens_are_refused() -> None:
    targets = Targets(torch.tensor([0]), torch.tensor([0.5]))
    with pytest.raises(IncompatibleError):
        corpus_baselines(
            EvaluationSet([(Batch(torch.tensor([[6]])), {"q": targets})], 1, 1), Stream([6, 7]), VOCABULARY
        )


class _Judged:
    """Three terms: tokens, classes, and one that knows its chance."""

    terms = ("masked_lm", "row", "pairs")
    answers: ClassVar = {"row": "classes", "pairs": "other"}
    vocabulary = VOCABULARY

    def for_evaluation(self):
        return self

    def chance(self, term):
        return 1.5

    def layout_nats(self, term, targets):
        return 0.0

    def weights(self, progress):
        return {"masked_lm": 1.0, "row": 2.0, "pairs": 0.5}


def test_terms_that_predict_no_tokens_have_a_chance() -> None:
    made = _masked_set([[6, 7, 8, 6]], [[1, 2]])
    batch, targets = made.batches[0]
    classes = Targets(torch.arange(4), torch.tensor([0, 1, 1, 1]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    made = EvaluationSet([(batch, {**targets, "row": classes})], 1, 1)
    found = term_baselines(_Judged(), made, Stream([6, 7, 8, 6, 7]))
    entropy = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    assert found["row.chance"] == pytest.approx(entropy)
    assert found["pairs.chance"] == 1.5
    assert found["chance"] == pytest.approx(found["masked_lm.unigram"] + 2 * entropy + 0.75)


def test_a_drawn_layout_costs_every_baseline_the_same() -> None:
    """What no frequency can tell is added once for the whole evaluation, however it is cut into batches."""
    rows, chosen, train = [[6, 7, 8, 6]] * 3, [[1, 2]] * 3, Stream(_text(500, 1))

    class Cut(_Judged):
        terms = ("masked_lm",)

        def layout_nats(self, term, targets):
            return 0.5 * len(targets.values)

    made = _masked_set(rows, chosen)
    assert len(made.batches) == 2
    bare = corpus_baselines(made, train, VOCABULARY).losses()
    found = term_baselines(Cut(), made, train)
    assert found == pytest.approx({name: loss + 0.5 for name, loss in bare.items()})
