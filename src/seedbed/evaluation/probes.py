"""Read a task off a model that stays as it is: a linear classifier, or regression, on frozen sentence vectors.

What a probe finds is in the vectors already; nothing of the model learns. It is quick and has no rate to tune, so it serves to
compare models of different kinds; what a model can be taught is the business of `finetune`.

Features: the mean of a text's last hidden states; of a pair (u, v): u, v, |u - v| and u * v, as in InferSent (Conneau et al.,
arXiv 1705.02364, section 3.1). The penalty is chosen on examples kept out of training, never on those that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.evaluation.similarity import sentence_vectors
from seedbed.metrics import METRICS
from seedbed.models.language_model import LanguageModel
from seedbed.tasks import Example, TaskData, choose
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["ProbeResult", "probe"]

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_KEPT_OUT = 5
"""Every fifth training example chooses the penalty."""
_STEPS = 200


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe scored on dev.

    Attributes:
        scores: by metric.
        baseline: the same of always answering the most frequent class, or the mean.
        right: (n,) of a classification, whether each dev example was answered right; of a regression empty.
        penalty: chosen.
        examples: training examples used.
    """

    scores: dict[str, float]
    baseline: dict[str, float]
    right: npt.NDArray[np.bool_]
    penalty: float
    examples: int


def probe(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: TaskData,
    *,
    max_train: int = 0,
    max_dev: int = 0,
    compute_dtype: torch.dtype = torch.float32,
) -> ProbeResult:
    """Fit a probe on a task's training examples and score it on dev.

    Args:
        model: gives the features; an encoder or a decoder.
        tokenizer: of the model.
        data: the task; a classification or a regression.
        max_train: training examples at most, chosen by hash; 0: all.
        max_dev: dev examples at most, likewise.
        compute_dtype: number type of the model's products. The probe itself is float64, and deterministic.

    Raises:
        IncompatibleError: an encoder-decoder.
    """
    train, dev = choose(data.splits["train"], max_train), choose(data.splits["dev"], max_dev)
    features = [_features(model, tokenizer, part, compute_dtype) for part in (train, dev)]
    middle, scale = features[0].mean(dim=0), features[0].std(dim=0).clamp_min(1e-6)
    x, x_dev = ((f - middle) / scale for f in features)
    y, y_dev = _targets(data, train), _targets(data, dev)
    is_number = data.config.kind == "regression"
    solve = _ridge if is_number else _logistic
    outputs = 1 if is_number else len(data.labels)
    held = torch.arange(len(x)) % _KEPT_OUT == 0
    tried = []
    for penalty in _PENALTIES:
        weights = solve(x[~held], y[~held], outputs, penalty)
        tried.append(_loss(weights, x[held], y[held], is_number=is_number))
    penalty = _PENALTIES[int(np.argmin(tried))]
    answers = _answers(solve(x, y, outputs, penalty), x_dev, is_number=is_number)
    truth = y_dev.numpy()
    usual = np.full(
        len(truth), truth.dtype.type(float(y.mean()) if is_number else int(y.bincount().argmax()))
    )
    names = data.config.metric_names()
    return ProbeResult(
        scores={name: METRICS[name].score(truth, answers) for name in names},
        baseline={name: METRICS[name].score(truth, usual) for name in names},
        right=np.zeros(0, dtype=np.bool_) if is_number else answers == truth,
        penalty=penalty,
        examples=len(train),
    )


def _features(
    model: LanguageModel, tokenizer: Tokenizer, examples: Sequence[Example], dtype: torch.dtype
) -> Tensor:
    """Return (n, D) float64, or (n, 4 D) of pairs."""

    def vectors(texts: Sequence[str]) -> Tensor:
        device = next(model.parameters()).device
        found = sentence_vectors(
            model, tokenizer, texts, poolings=("mean",), device=device, compute_dtype=dtype
        )
        return found.by_pooling["mean"].double()

    u = vectors([e.text for e in examples])
    if all(e.text_pair is None for e in examples):
        return u
    v = vectors([e.text_pair or "" for e in examples])
    return torch.cat([u, v, (u - v).abs(), u * v], dim=1)


def _targets(data: TaskData, examples: Sequence[Example]) -> Tensor:
    if data.config.kind == "regression":
        return torch.tensor([float(e.label) for e in examples], dtype=torch.float64)
    index = {name: number for number, name in enumerate(data.labels)}
    return torch.tensor([index[str(e.label)] for e in examples])


def _logistic(x: Tensor, y: Tensor, outputs: int, penalty: float) -> Tensor:
    """Return weights (D + 1, C) of the smallest mean cross-entropy plus penalty times half their squares."""
    wide = F.pad(x, (0, 1), value=1.0)
    weights = torch.zeros(wide.shape[1], outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(wide @ weights, y) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def _ridge(x: Tensor, y: Tensor, outputs: int, penalty: float) -> Tensor:
    """Return weights (D + 1, 1) of the smallest mean squared error plus penalty times their squares."""
    centred = y - y.mean()
    matrix = x.T @ x / len(x) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    solved = torch.linalg.solve(matrix, x.T @ centred / len(x))
    return torch.cat([solved, y.mean()[None]])[:, None]


def _outputs(weights: Tensor, x: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]


def _loss(weights: Tensor, x: Tensor, y: Tensor, *, is_number: bool) -> float:
    found = _outputs(weights, x)
    return float(F.mse_loss(found[:, 0], y) if is_number else F.cross_entropy(found, y))


def _answers(weights: Tensor, x: Tensor, *, is_number: bool) -> npt.NDArray[Any]:
    found = _outputs(weights, x)
    answers: npt.NDArray[Any] = (found[:, 0] if is_number else found.argmax(dim=1)).numpy()
    return answers
