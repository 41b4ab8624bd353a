"""What every objective owes the step; a new one is held to it by its line in `OBJECTIVES`."""

from __future__ import annotations

import pytest
import torch

from seedbed.data.views import RowReader, RowSource
from seedbed.models import MODELS
from seedbed.objectives import OBJECTIVES
from seedbed.recipe import DEFAULT_MODELS
from toy_tasks import ToyTokenizer, toy_section
from toys import RESERVED, ToySplit, toy_model

LENGTH = 16


@pytest.fixture
def build(tmp_path):
    def made(name):
        return toy_section(name, tmp_path).build(RESERVED, row_length=LENGTH, is_segmented=False)

    return made


def batch_of(objective, start, count):
    view = objective.make_view(RowSource(ToySplit(), tokenizer=ToyTokenizer()))
    return objective.make_batch(*RowReader(view, name=objective.view, seed=0).read(start, count))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batches_are_pure(build, name):
    """The same rows give the same batch and targets, whatever was drawn before."""
    objective = build(name)
    first, targets = batch_of(objective, 3, 5)
    torch.manual_seed(99)
    again, targets_again = batch_of(objective, 3, 5)
    assert torch.equal(first.input_ids, again.input_ids)
    assert targets.keys() == targets_again.keys()
    for term in targets:
        assert torch.equal(targets[term].at, targets_again[term].at)
        assert torch.equal(targets[term].values, targets_again[term].values)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_is_the_same_in_any_batch(build, name):
    objective = build(name)
    whole, _ = batch_of(objective, 0, 6)
    for row in range(6):
        alone, _ = batch_of(objective, row, 1)
        length = alone.input_ids.shape[1]  # rows of examples are as long as the longest of their batch
        assert torch.equal(whole.input_ids[row, :length], alone.input_ids[0])
        assert (whole.input_ids[row, length:] == RESERVED.pad_id).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shapes_and_targets_fit(build, name):
    objective = build(name)
    batch, targets = batch_of(objective, 0, 7)
    sides = [batch.input_ids] + ([batch.decoder_input_ids] if batch.decoder_input_ids is not None else [])
    assert all(side.shape[0] % 7 == 0 for side in sides)  # some read a row in several forms
    longest = max(side.shape[1] for side in sides)
    assert longest == LENGTH or (longest < LENGTH and objective.view in ("examples", "sentences"))
    assert set(targets) & set(objective.terms)
    assert 0 <= int(batch.input_ids.min()) <= int(batch.input_ids.max()) < RESERVED.vocab_size
    for term, count in objective.counts(targets).items():
        if term not in targets:  # derived: it has a count and no targets of its own
            assert count > 0
            continue
        target = targets[term]
        assert len(target.at) == len(target.values)
        assert (
            count == (len(target.at) if target.weights is None else float(target.weights.double().sum())) > 0
        )
        assert 0 <= int(target.at.min()) <= int(target.at.max()) < 7 * LENGTH
        assert 0 <= int(target.values.min()) <= int(target.values.max()) < RESERVED.vocab_size


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_sums_over_targets(build, name):
    """Two halves add up to the whole: nothing is averaged inside."""
    objective = build(name)
    model = toy_model(DEFAULT_MODELS[name], vocabulary=RESERVED)
    modules = {**objective.modules(model.trunk, model.head), **objective.frozen()}
    assert "trunk" in modules

    def losses(start, count):
        batch, targets = batch_of(objective, start, count)
        return {
            term: value.loss.detach() for term, value in objective.losses(modules, batch, targets).items()
        }

    cut = 3 if objective.group_rows == 1 else objective.group_rows
    whole, one, other = losses(0, 8), losses(0, cut), losses(cut, 8 - cut)
    for term in objective.terms:
        assert float(whole[term]) > 0
        assert torch.allclose(whole[term], one[term] + other[term], rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_model_it_implies_fits_and_some_other_is_refused_with_a_hint(build, name):
    from seedbed.errors import IncompatibleError

    objective = build(name)
    refused = []
    for family, kind in MODELS.items():
        model = kind(preset="tiny", max_length=LENGTH, hidden_dropout=0.1).build(
            vocab_size=RESERVED.vocab_size
        )
        try:
            objective.check(model)
        except IncompatibleError as error:
            refused.append((family, error.hint))
    wrong = {family for family, kind in MODELS.items() if kind.stack not in OBJECTIVES[name].fits}
    assert wrong <= {family for family, _ in refused}
    assert all(hint for _, hint in refused)
    assert DEFAULT_MODELS[name] not in [family for family, _ in refused]
