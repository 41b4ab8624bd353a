import pytest
import torch

from seedbed.data.store import SPECIAL
from seedbed.objectives.masked_lm import MaskedLMConfig
from toys import VOCABULARY, toy_model, toy_reader

LENGTH = 33


def build(**config):
    config = MaskedLMConfig(unit="span", span_boundary=True, initial_mask_rate=None, **config)
    return config.build(VOCABULARY, row_length=LENGTH, is_segmented=False)


def batch_of(objective, count=None):
    reader = toy_reader(objective.raw_row_length)
    return objective.make_batch(*reader.read(0, count or reader.num_rows))


def test_boundaries_are_the_visible_neighbours_of_each_span():
    objective = build(mask_rate=0.3)
    reader = toy_reader(objective.raw_row_length)
    rows, draws = reader.read(0, reader.num_rows)  # the short tail row too
    _, targets = objective.make_batch(rows, draws)
    masked = targets["masked_lm"]
    hidden = set(masked.at[masked.weights > 0].tolist() if masked.weights is not None else masked.at.tolist())
    left, right, target = (targets[f"span_boundary{end}"] for end in (".left", ".right", ""))
    counted = 0
    for n, at in enumerate(target.at.tolist()):
        row = at // LENGTH
        start, end = at, at
        while start - 1 in hidden:
            start -= 1
        while end + 1 in hidden:
            end += 1
        inside = end + 1 < row * LENGTH + 1 + int(rows.lengths[row])
        expected = at in hidden and inside and at - start < 20
        assert bool(target.weights[n]) == expected
        if expected:
            counted += 1
            assert (int(left.at[n]), int(right.at[n]), int(left.values[n])) == (
                start - 1,
                end + 1,
                at - start,
            )
    assert counted > 100
    assert objective.counts(targets).keys() == {"masked_lm", "span_boundary"}
    assert objective.counts(targets)["span_boundary"] == counted
    assert not ((rows.marks & SPECIAL) != 0).reshape(-1)[0]


def test_the_term_reads_the_boundaries_and_not_the_span():
    """Its loss is that of a plain computation from the full hidden states."""
    objective = build(mask_rate=0.3)
    model = toy_model("bert")
    modules = objective.modules(model.trunk, model.head, seed=5)
    batch, targets = batch_of(objective)
    found = objective.losses(modules, batch, targets)
    states = model.trunk(batch).last.flatten(0, 1)
    part = modules["span_boundary"]
    total = 0.0
    for n in range(len(targets["span_boundary"].at)):
        if not targets["span_boundary"].weights[n]:
            continue
        pieces = [states[targets["span_boundary.left"].at[n]], states[targets["span_boundary.right"].at[n]]]
        pieces.append(part.place.weight[targets["span_boundary.left"].values[n]])
        inner = part.input_norm(torch.nn.functional.gelu(part.input(torch.cat(pieces))))
        inner = part.output_norm(torch.nn.functional.gelu(part.output(inner)))
        logits = (model.head.weight @ inner + model.head.bias).detach()
        total += float(logits.logsumexp(0) - logits[targets["span_boundary"].values[n]])
    assert float(found["span_boundary"].loss.detach()) == pytest.approx(total, rel=1e-4)
    plain = MaskedLMConfig(unit="span", initial_mask_rate=None, mask_rate=0.3)
    alone = plain.build(VOCABULARY, row_length=LENGTH, is_segmented=False)
    assert torch.allclose(
        found["masked_lm"].loss, alone.losses(modules, *batch_of(alone))["masked_lm"].loss, rtol=1e-6
    )


def test_the_same_seed_gives_the_same_layers_and_all_of_them_learn():
    objective = build()
    model = toy_model("modernbert")
    one, two = (objective.modules(model.trunk, model.head, seed=3)["span_boundary"] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    losses = objective.losses(
        {"trunk": model.trunk, "head": model.head, "span_boundary": one}, *batch_of(objective)
    )
    losses["span_boundary"].loss.backward()
    assert all(p.grad is not None for p in one.parameters())
    assert model.head.weight.grad is not None


def test_evaluation_leaves_the_term_out():
    assert build().for_evaluation().terms == ("masked_lm",)
