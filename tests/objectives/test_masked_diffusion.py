"""Masked diffusion: any number of hidden tokens, weighted so that the loss bounds nats a token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from seedbed.data.store import SPECIAL
from seedbed.errors import IncompatibleError
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.masked_diffusion import MaskedDiffusionConfig
from toys import VOCABULARY, toy_model, toy_reader

LENGTH = 16


def build(**changes):
    return MaskedDiffusionConfig(**changes).build(VOCABULARY, row_length=LENGTH, is_segmented=False)


def rows_of(count, **changes):
    return toy_reader(LENGTH - 1, num_documents=900).read(0, count)


def test_every_number_of_hidden_tokens_is_equally_likely():
    rows, draws = rows_of(1200)
    batch, targets = build().make_batch(rows, draws)
    real = ((rows.marks & SPECIAL) == 0).sum(dim=1)
    hidden = torch.bincount(targets["masked_diffusion"].at // LENGTH, minlength=1200)
    share = hidden / real
    assert int(hidden.min()) >= 1
    assert bool((hidden <= real).all())
    assert float(share.mean()) == pytest.approx(0.5 + 0.5 / float(real.float().mean()), abs=0.03)
    assert float((share > 0.9).float().mean()) == pytest.approx(0.1 + 0.5 / LENGTH, abs=0.05)
    assert (batch.input_ids == VOCABULARY.mask_id).sum() == hidden.sum()


def test_weights_of_a_row_sum_to_its_tokens():
    rows, draws = rows_of(50)
    objective = build()
    _, targets = objective.make_batch(rows, draws)
    target = targets["masked_diffusion"]
    sums = torch.zeros(50).index_add(0, target.at // LENGTH, target.weights)
    real = ((rows.marks & SPECIAL) == 0).sum(dim=1).float()
    assert torch.allclose(sums, real, rtol=1e-5)
    assert objective.counts(targets)["masked_diffusion"] == pytest.approx(float(real.sum()))


def test_the_largest_share_grows_over_the_run():
    rows, draws = rows_of(400)
    objective = build(min_mask_rate=0.1, initial_max_mask_rate=0.3, max_mask_rate=0.9)
    real = ((rows.marks & SPECIAL) == 0).sum(dim=1)
    for progress, largest in ((0.0, 0.3), (0.5, 0.6), (1.0, 0.9)):
        _, targets = objective.make_batch(rows, draws, progress=progress)
        hidden = torch.bincount(targets["masked_diffusion"].at // LENGTH, minlength=400)
        assert bool((hidden <= (largest * real).round()).all())
        assert float((hidden / real).max()) > largest - 0.1
    exact = objective.for_evaluation().make_batch(rows, draws, progress=0.0)[1]["masked_diffusion"]
    assert float(torch.bincount(exact.at // LENGTH, minlength=400).float().mean()) > 0.45 * LENGTH
    with pytest.raises(ValueError, match="above the largest rate"):
        MaskedDiffusionConfig(min_mask_rate=0.4, initial_max_mask_rate=0.3)


class _Fixed(nn.Module):
    """A head that gives every place the same distribution: its exact nats a token are known."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-2, 2, 64))

    def forward(self, features):
        return self.logits.expand(*features.shape[:-1], -1)


def test_the_bound_is_exact_for_a_model_without_context():
    objective, model = build(), toy_model("modernbert")
    rows, draws = rows_of(1200)
    batch, targets = objective.make_batch(rows, draws)
    head = _Fixed()
    term = objective.losses({"trunk": model.trunk, "head": head}, batch, targets)["masked_diffusion"]
    logits = head.logits.detach().clone()
    logits[VOCABULARY.mask_id] = -math.inf
    text = rows.ids[(rows.marks & SPECIAL) == 0]
    exact = float(-logits.log_softmax(0)[text].mean())
    found = float(term.loss.detach()) / objective.counts(targets)["masked_diffusion"]
    assert found == pytest.approx(exact, rel=0.02)


def test_the_mask_is_never_an_answer():
    objective, model = build(), toy_model("modernbert")
    batch, targets = objective.make_batch(*rows_of(4))
    prediction = objective.predict(objective.modules(model.trunk, model.head), batch, targets)[
        "masked_diffusion"
    ]
    probabilities = prediction.head(prediction.features).softmax(-1)
    assert float(probabilities.detach()[:, VOCABULARY.mask_id].max()) == 0.0


def test_separators_are_seen_and_never_predicted():
    rows, draws = rows_of(100)
    _, targets = build().make_batch(rows, draws)
    assert int(targets["masked_diffusion"].values.min()) >= 5


def test_a_vocabulary_without_a_mask_is_refused():
    plain = Vocabulary(vocab_size=64, separator_id=3, special_ids=frozenset([3]))
    with pytest.raises(IncompatibleError, match="mask token"):
        MaskedDiffusionConfig().build(plain, row_length=LENGTH, is_segmented=False)
