"""Measure how far a student's insides are from a teacher's: logits, hidden states, attention, relations.

Every function returns one loss for each target or token, to be summed; nothing is averaged over tokens here. Sources are
named with each. The objective that uses them is `distillation.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "attention_scores",
    "cosine_distance",
    "regrouped",
    "relation_divergence",
    "score_error",
    "soft_targets",
    "state_error",
]


def soft_targets(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of softened distributions, (N,), from logits (N, V).

    T^2 keeps the gradient's size whatever the temperature. The divergence is the cross-entropy less the teacher's entropy,
    which has no gradient: 0 means that both agree.
    Source: Hinton et al., 1503.02531, section 2; DistilBERT, 1910.01108, section 2.
    """
    own = (student.float() / temperature).log_softmax(dim=-1)
    other = (teacher.float() / temperature).log_softmax(dim=-1)
    return temperature**2 * F.kl_div(own, other, reduction="none", log_target=True).sum(dim=-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cos of hidden states (N, D) each, (N,). Source: DistilBERT, section 3."""
    return 1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def state_error(student: Tensor, teacher: Tensor, projection: nn.Module | None) -> Tensor:
    """Return the mean squared difference of hidden states (N, D), (N,), once projected to the teacher's width.

    Source: TinyBERT, 1909.10351, equations 8 and 9.
    """
    if projection is not None:
        student = projection(student)
    return (student.float() - teacher.float()).square().mean(dim=-1)


def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """Return q k' / sqrt(K), (B, H, T, S) float32, of queries (B, H, T, K) and keys (B, G, S, K), H a multiple of G."""
    heads, groups = query.shape[1], key.shape[1]
    key = key.repeat_interleave(heads // groups, dim=1) if groups != heads else key
    scores: Tensor = query.float() @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5
    return scores


def score_error(student: Tensor, teacher: Tensor, allowed: Tensor) -> Tensor:
    """Return the mean squared difference of attention scores over heads and the keys a query may attend, (B, T).

    Args:
        student: (B, H, T, S) before the softmax, which converges faster than after it.
        teacher: the same shape.
        allowed: (B or 1, T, S) bool.

    Source: TinyBERT, equation 7.
    """
    squared = (student - teacher).square().mean(dim=1)
    return (squared * allowed).sum(dim=-1) / allowed.sum(dim=-1).clamp(min=1)


def regrouped(states: Tensor, heads: int) -> Tensor:
    """Return (B, H, T, K) cut anew into `heads` heads of H * K / heads, as MiniLMv2 (2012.15828) makes widths comparable."""
    batch, _, length, _ = states.shape
    return states.transpose(1, 2).reshape(batch, length, heads, -1).transpose(1, 2)


def relation_divergence(student: Tensor, teacher: Tensor, allowed: Tensor) -> Tensor:
    """Return KL(teacher || student) of the softmax over keys, averaged over heads, (B, T).

    Args:
        student: (B, H, T, S) scores: queries with keys, or values with values.
        teacher: the same shape.
        allowed: (B or 1, T, S) bool.

    Source: MiniLM, 2002.10957, equations 5 to 7.
    """
    hidden = ~allowed[:, None]
    lowest = torch.finfo(student.dtype).min
    own = student.masked_fill(hidden, lowest).log_softmax(dim=-1)
    other = teacher.masked_fill(hidden, lowest).log_softmax(dim=-1)
    divergence = torch.where(hidden, 0.0, other.exp() * (other - own))
    return divergence.sum(dim=-1).mean(dim=1)
