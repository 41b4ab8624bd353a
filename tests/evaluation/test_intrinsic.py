from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seedbed.data.views import WindowView
from seedbed.evaluation import intrinsic
from seedbed.evaluation.intrinsic import Spread, build_evaluation_set, score
from seedbed.objectives.base import Objective
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from toys import VOCAB_SIZE, VOCABULARY, ToySplit, toy_model

CASES = {"masked_lm": (MaskedLMConfig, "modernbert"), "causal_lm": (CausalLMConfig, "llama")}


def _parts(name: str, **changes: object) -> tuple[Objective, Mapping[str, nn.Module], WindowView]:
    config, family = CASES[name]
    objective = config(**changes).build(VOCABULARY, row_length=16, is_segmented=False)
    model = toy_model(family)
    assert model.head is not None
    view = WindowView(ToySplit(20, seed=5), length=objective.raw_row_length)
    return objective, objective.modules(model.trunk, model.head), view


@pytest.mark.parametrize("name", CASES)
def test_score_is_what_a_plain_loop_says(name: str) -> None:
    objective, modules, view = _parts(name)
    chosen = build_evaluation_set(objective, view, max_rows=10**6, rows_per_batch=3)
    losses, ranks = [], []
    with torch.no_grad():
        for batch, targets in chosen.batches:
            target = targets[name]
            logits = modules["head"](modules["trunk"](batch).last.flatten(0, 1)[target.at])
            kept = torch.ones(len(logits), dtype=torch.bool) if target.weights is None else target.weights > 0
            logits, values = logits[kept], target.values[kept]
            losses += F.cross_entropy(logits.double(), values, reduction="none").tolist()
            ranks += (logits > logits.gather(1, values[:, None])).sum(dim=1).tolist()
    found = score(objective, modules, chosen)
    assert found["targets"] == len(losses)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["accuracy"] == pytest.approx(sum(r < 1 for r in ranks) / len(ranks))
    assert found["accuracy_top5"] == pytest.approx(sum(r < 5 for r in ranks) / len(ranks))
    if name == "causal_lm":
        assert found["targets"] == view.split.num_tokens  # every token once


def test_rows_are_spaced_evenly_and_targets_do_not_depend_on_how_many() -> None:
    objective, _, view = _parts("masked_lm")
    whole = build_evaluation_set(objective, view, max_rows=10**6, rows_per_batch=10**6)
    some = build_evaluation_set(objective, view, max_rows=5, rows_per_batch=2)
    assert (whole.num_rows, some.num_rows, some.total_rows) == (view.num_rows, 5, view.num_rows)
    ids = torch.cat([batch.input_ids for batch, _ in some.batches])
    expected = [i * view.num_rows // 5 for i in range(5)]
    assert torch.equal(ids, whole.batches[0][0].input_ids[expected])


def test_what_trains_does_not_change_what_is_scored() -> None:
    plain, modules, view = _parts("masked_lm")
    other, _, _ = _parts("masked_lm", mask_rate=0.4, unit="word", label_smoothing=0.2, z_loss=0.1)
    one = score(plain, modules, build_evaluation_set(plain, view, max_rows=8))
    assert one == score(other, modules, build_evaluation_set(other, view, max_rows=8))


def test_rows_of_a_batch_fit_a_limit_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, _, view = _parts("causal_lm")
    monkeypatch.setattr(intrinsic, "_MAX_LOGITS", 3 * 16 * VOCAB_SIZE + 1)
    chosen = build_evaluation_set(objective, view, max_rows=8)
    assert [len(batch.input_ids) for batch, _ in chosen.batches] == [3, 3, 2]
    monkeypatch.setattr(intrinsic, "_MAX_LOGITS", 1)
    assert len(build_evaluation_set(objective, view, max_rows=4).batches) == 4


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_that_share_the_batches_have_the_scores_of_one(name: str, count: int) -> None:
    """Each runs as many passes as any other, and the sums of all are those of one; with eight, some have no batch of their own."""
    objective, modules, view = _parts(name)
    chosen = build_evaluation_set(objective, view, max_rows=13, rows_per_batch=3)
    passes: list[int] = []
    sums: list[Mapping[tuple[str, str], float]] = []

    def note(own: Mapping[tuple[str, str], float]) -> Mapping[tuple[str, str], float]:
        sums.append(own)
        return own

    for index in range(count):
        spread = Spread(index, count, note)
        passes.append(len(spread.own(len(chosen.batches))))
        if sum(counts for _, counts in spread.own(len(chosen.batches))):
            score(objective, modules, chosen, spread=spread)
    assert len(set(passes)) == 1
    total = {key: sum(own[key] for own in sums) for key in sums[0]}
    found = score(objective, modules, chosen, spread=Spread(count - 1, count, lambda own: total))
    whole = score(objective, modules, chosen)
    assert found.keys() == whole.keys()
    assert found == pytest.approx(whole, rel=1e-12)
