from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from seedbed.artifact import Artifact, open_verified, publish
from seedbed.batch import Batch, Targets
from seedbed.data.views import WindowView
from seedbed.errors import DataError, IncompatibleError, IntegrityError
from seedbed.evaluation import fixed_targets
from seedbed.evaluation.fixed_targets import build_validation, load_validation, save_validation
from seedbed.evaluation.intrinsic import EvaluationSet, build_evaluation_set, score
from seedbed.objectives.base import Objective
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from toys import VOCABULARY, ToySplit, toy_model

OBJECTIVES = {"masked_lm": MaskedLMConfig, "causal_lm": CausalLMConfig}


def _objective(name: str, *, is_segmented: bool = False, **changes: object) -> Objective:
    return OBJECTIVES[name](**changes).build(VOCABULARY, row_length=16, is_segmented=is_segmented)


def _tokens(path: Path, content: str = "a") -> Artifact:
    """A stand-in for the token store: only its digest matters."""
    with publish(path, stage="tokens", version=1) as draft:
        (draft.path / "x").write_text(content)
    return open_verified(path)


def _equal(one: Batch | Targets, other: Batch | Targets) -> bool:
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            if not (isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)):
                return False
        elif a != b:
            return False
    return True


def _same(one: EvaluationSet, other: EvaluationSet) -> bool:
    return (one.num_rows, one.total_rows) == (other.num_rows, other.total_rows) and all(
        _equal(a, b) and s.keys() == t.keys() and all(_equal(s[k], t[k]) for k in s)
        for (a, s), (b, t) in zip(one.batches, other.batches, strict=True)
    )


@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_round_trip_is_exact(name: str, is_segmented: bool, tmp_path: Path) -> None:
    objective = _objective(name, is_segmented=is_segmented)
    view = WindowView(ToySplit(20, seed=1), length=objective.raw_row_length)
    made = build_evaluation_set(objective, view, max_rows=1000, rows_per_batch=5)
    assert made.num_rows == view.num_rows  # the short last row is among them
    run = tmp_path / "run"
    args = (run, _tokens(tmp_path / "tokens"), objective, view, ToySplit(30, seed=2))
    stored, baselines = build_validation(*args, max_rows=1000)
    direct = build_evaluation_set(objective, view, max_rows=1000)
    assert _same(stored, direct)
    assert list(baselines) == ["uniform", "unigram", "bigram"]
    saved = json.loads((run / "validation" / "baselines.json").read_text())
    assert {n: saved[n] for n in baselines} == baselines


def test_every_kind_of_field_survives(tmp_path: Path) -> None:
    ids = torch.arange(6).reshape(2, 3)
    batch = Batch(
        ids,
        token_type_ids=ids * 0,
        attention="order",
        is_segmented=True,
        has_padding=True,
        attend_order=ids.int(),
        decoder_input_ids=ids[:, :2],
        query_at=ids,
    )
    targets = {
        "a": Targets(torch.tensor([1]), torch.tensor([2]), torch.tensor([0.5]), stream="query"),
        "b/c": Targets(torch.tensor([0, 3]), torch.tensor([0.25, -1.0])),
    }
    made = EvaluationSet([(batch, targets), (replace(batch, input_ids=ids + 1), {})], 4, 9)
    objective = _objective("masked_lm")
    view = WindowView(ToySplit(20), length=15)
    build_validation(tmp_path / "run", _tokens(tmp_path / "t"), objective, view, ToySplit(), max_rows=8)
    _, baselines = load_validation(open_verified(tmp_path / "run" / "validation"))
    with publish(tmp_path / "made", stage="validation", version=2) as draft:
        save_validation(draft.path, made, baselines)
    loaded, again = load_validation(open_verified(tmp_path / "made"))
    assert _same(loaded, made)
    assert again == baselines


def test_it_is_made_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = _tokens(tmp_path / "tokens")
    objective = _objective("masked_lm")
    view = WindowView(ToySplit(20, seed=1), length=15)
    first, baselines = build_validation(tmp_path, tokens, objective, view, ToySplit(), max_rows=10)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(fixed_targets, "build_evaluation_set", never)
    monkeypatch.setattr(fixed_targets, "term_baselines", never)
    # How a model trains (its rate, its smoothing) does not change what it is judged by.
    other = _objective("masked_lm", mask_rate=0.4, label_smoothing=0.1, unit="word")
    second, again = build_validation(tmp_path, tokens, other, view, ToySplit(), max_rows=10)
    assert _same(first, second)
    assert again == baselines


@pytest.mark.parametrize("change", ["tokens", "rows", "objective", "segments"])
def test_anything_else_that_changes_targets_stops_with_a_hint(change: str, tmp_path: Path) -> None:
    tokens, objective = _tokens(tmp_path / "tokens"), _objective("masked_lm")
    view = WindowView(ToySplit(20, seed=1), length=15)
    build_validation(tmp_path, tokens, objective, view, ToySplit(), max_rows=10)
    max_rows = 11 if change == "rows" else 10
    if change == "tokens":
        tokens = _tokens(tmp_path / "others", "b")
    if change == "objective":
        objective = _objective("causal_lm")
    if change == "segments":
        objective = _objective("masked_lm", is_segmented=True)
    view = WindowView(ToySplit(20, seed=1), length=objective.raw_row_length)
    with pytest.raises(IncompatibleError, match="made differently") as caught:
        build_validation(tmp_path, tokens, objective, view, ToySplit(), max_rows=max_rows)
    assert caught.value.hint
    made, _ = build_validation(tmp_path, tokens, objective, view, ToySplit(), max_rows=max_rows, replace=True)
    assert _same(made, build_evaluation_set(objective, view, max_rows=max_rows))


def test_one_changed_bit_is_refused_by_name(tmp_path: Path) -> None:
    args = (tmp_path, _tokens(tmp_path / "tokens"), _objective("masked_lm"))
    view = WindowView(ToySplit(20, seed=1), length=15)
    build_validation(*args, view, ToySplit(), max_rows=10)
    path = tmp_path / "validation" / "batches.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"batches\.safetensors"):
        build_validation(*args, view, ToySplit(), max_rows=10)


def test_a_split_without_ordinary_tokens_is_an_error(tmp_path: Path) -> None:
    split = ToySplit(1)
    split.ids, split.marks, split.num_tokens = split.ids[-1:], split.marks[-1:], 1
    with pytest.raises(DataError):
        build_validation(
            tmp_path,
            _tokens(tmp_path / "tokens"),
            _objective("masked_lm"),
            WindowView(split, length=15),
            ToySplit(),
            max_rows=10,
        )
    assert not (tmp_path / "validation").exists()


@pytest.mark.parametrize(("name", "family"), [("masked_lm", "bert"), ("causal_lm", "gpt2")])
def test_a_score_of_the_stored_set_is_that_of_the_set(name: str, family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    plain, smoothed = _objective(name), _objective(name, label_smoothing=0.2, z_loss=0.01)
    modules = plain.modules(model.trunk, model.head)
    view = WindowView(ToySplit(20, seed=1), length=plain.raw_row_length)
    stored, baselines = build_validation(
        tmp_path, _tokens(tmp_path / "tokens"), smoothed, view, ToySplit(), max_rows=1000
    )
    found = score(smoothed, modules, stored)
    assert found == score(plain, modules, build_evaluation_set(plain, view, max_rows=1000))
    # An untrained model is near uniform, whatever smoothing it is to be trained with.
    assert found["loss"] == pytest.approx(baselines["uniform"], abs=0.35)
    one_by_one = build_evaluation_set(plain, view, max_rows=1000, rows_per_batch=1)
    assert score(plain, modules, one_by_one)["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert score(plain, modules, one_by_one)["targets"] == found["targets"]
