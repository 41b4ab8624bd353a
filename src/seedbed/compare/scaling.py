"""Fit how the loss falls with size and tokens, and forecast it with an interval that says what is not known.

The curve of decayed runs (each probe's schedule ends with it) is

    loss(N, D) = C + A N^-a + B (D'^-b - 1) / b,    D' = U + U R (1 - exp(-(D / U - 1) / R)) beyond one pass, else D

with N the parameters that work at a token (a sixth of the operations a token costs), D the tokens read, U those there are, and R
the passes after which a repeated token is hardly worth a new one; N and D' in units of the probes' geometric means. With b = 0 it
is a straight line over the logarithm of the tokens. The floor that b > 0 leads to, C - B / b, is not held above 0.

Source: Hoffmann et al., arXiv 2203.15556, approach 3 (the curve); Muennighoff et al., arXiv 2305.16264, section 3 (repeats).
Differs from them: the exponents are weighed on a grid, the other numbers are a regression with its uncertainty (conjugate: a t
distribution), and a forecast is the mixture of all. With one size the term of N is left out. The floor may seem to lie below 0:
small models that have just left the plateau of words and their neighbours were seen to fall along the straight line over a
tenfold length (masked, English Wikipedia, 1.2 to 12 M tokens), faster than any power of D above a floor of 0; so b is expected
between -0.2 and 0.3, and more is believed where the probes show it.
On the plateau and on the way off it a masked run follows no curve. Probes that did not get below the bigram are left out, as
long as enough of them remain, and else all but the lowest.
A causal run has no plateau: it learns which token follows which along a straight line over log D, and bends once it knows that.
Where a bend is given (the bigram), the curve of probes that are above it holds down to it, or to the longest probe, and goes on
from there with the same slope and another exponent, expected at 0.45 give or take 0.2. Hoffmann et al. find 0.28 to 0.37 on the
way to their floor; on English and Chinese Wikipedia tiny showed 0.6 from there on, and none before (docs/log.md). Where
enough probes are past the bend, they alone are fitted, and the exponent is expected there from the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seedbed.errors import DataError

__all__ = ["REUSE", "Curve", "Forecast", "Probe", "are_enough", "effective_tokens", "fit_curve"]

Array = np.ndarray[Any, np.dtype[np.float64]]

REUSE = {"causal": 15.0, "masked": 150.0}
"""R by kind. Causal: 15.4 in Muennighoff et al., table 1. Masked: several times that (masked diffusion gains up to some 500
passes: Prabhudesai et al., arXiv 2507.15857); a forecast beyond a few passes rests on this number, not on probes."""

_EXPONENTS = np.linspace(-0.2, 1.2, 57)
_EXPECTED, _BEYOND = (
    0.3,
    0.15,
)  # b up to the first as likely as any; beyond it a factor e less with each of the second
_BENT, _BENT_GIVE = 0.45, 0.2  # b of a causal model that has learned which token follows which
_SIZE_EXPONENTS = np.linspace(0.05, 0.8, 16)
_PRIOR_WEIGHT = 3.0  # pseudo-observations of the noise
_PRIOR_NOISE = 0.02  # nats; two seeds of a mini run differ by about as much
_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Probe:
    """One finished run.

    Attributes:
        parameters: N.
        tokens: D.
        loss: at the end, nats.
        bigram: what a table of neighbouring tokens comes to at the same targets.
    """

    parameters: float
    tokens: float
    loss: float
    bigram: float = math.inf


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will come to.

    Attributes:
        loss: the median.
        low, high: 90 % interval.
    """

    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The curves that fit the probes, each with its weight.

    Attributes:
        weights: (G,) sum to 1.
        size_exponents, exponents: (G,) a and b.
        terms: (G, 3) C, B and A, or (G, 2) without A where all probes are of one size.
        spreads: (G, 3, 3) or (G, 2, 2) their covariance, in units of the noise.
        noise: (G,) standard deviation of what the curve leaves.
        freedom: degrees of freedom of it.
        scale: geometric means of N and D'.
        unique: U, or None.
        reuse: R.
        used: probes the curves were fitted to.
        left_out: probes that are still on the plateau.
        bend: loss at which the exponent changes; None: it does not.
    """

    weights: Array
    size_exponents: Array
    exponents: Array
    terms: Array
    spreads: Array
    noise: Array
    freedom: float
    scale: tuple[float, float]
    unique: float | None
    reuse: float
    used: tuple[Probe, ...] = ()
    left_out: tuple[Probe, ...] = ()
    bend: float | None = None

    def forecast(self, parameters: float, tokens: float) -> Forecast:
        """Return the loss a run will end with, and its 90 % interval; the same for the same probes."""
        n = parameters / self.scale[0]
        d = effective_tokens(tokens, self.unique, self.reuse) / self.scale[1]
        draw = np.random.default_rng(0)
        chosen = draw.choice(len(self.weights), size=_DRAWS, p=self.weights)
        chance = draw.standard_t(self.freedom, _DRAWS)
        sizes = n ** -self.size_exponents[chosen]
        falls = _fall(d, self.exponents[chosen])
        if self.bend is not None:
            falls = self._bent(falls, d, sizes, chosen, draw.normal(_BENT, _BENT_GIVE, _DRAWS))
        columns = np.stack([np.ones_like(falls), falls, sizes][: self.terms.shape[1]], axis=1)  # (draws, 3)
        middle = (columns * self.terms[chosen]).sum(axis=1)
        reach = self.noise[chosen] * np.sqrt(
            1.0 + np.einsum("gi,gij,gj->g", columns, self.spreads[chosen], columns)
        )
        drawn = middle + reach * chance
        low, median, high = np.maximum(np.quantile(drawn, [0.05, 0.5, 0.95]), 0.0)
        return Forecast(float(median), float(low), float(high))

    def _bent(self, falls: Array, d: float, sizes: Array, chosen: Any, bent: Array) -> Array:
        """Return falls at d of curves that go on with the exponent `bent` from where they reach the bend."""
        exponents, terms = self.exponents[chosen], self.terms[chosen]
        size_terms = terms[:, 2] * sizes if terms.shape[1] > 2 else 0.0
        at_bend = (self.bend - terms[:, 0] - size_terms) / terms[:, 1]
        longest = max(effective_tokens(p.tokens, self.unique, self.reuse) for p in self.used) / self.scale[1]
        start = np.maximum(_length_of(at_bend, exponents), longest)
        is_past = d > start
        start = np.where(is_past, start, 1.0)
        beyond = _fall(start, exponents) + start**-exponents * _fall(d / start, bent)
        return np.where(is_past, beyond, falls)


def _fall(d: Any, exponent: Any) -> Any:
    """Return (d^-b - 1) / b, which is -log d for b = 0."""
    is_straight = np.abs(exponent) < 1e-9
    b = np.where(is_straight, 1.0, exponent)
    return np.where(is_straight, -np.log(d), (d**-b - 1.0) / b)


def _length_of(fall: Array, exponent: Array) -> Array:
    """Return the d at which the fall is that; infinite where the curve's floor lies above."""
    is_straight = np.abs(exponent) < 1e-9
    b = np.where(is_straight, 1.0, exponent)
    inner = 1.0 + b * fall
    curved = np.where(inner > 0.0, np.maximum(inner, 1e-12) ** (-1.0 / b), np.where(b > 0.0, np.inf, 0.0))
    return np.where(is_straight, np.exp(-fall), curved)


def effective_tokens(tokens: float, unique: float | None, reuse: float) -> float:
    """Return the fresh tokens that so many tokens of a text of `unique` ones are worth."""
    if unique is None or tokens <= unique:
        return tokens
    return unique + unique * reuse * (1.0 - math.exp(-(tokens / unique - 1.0) / reuse))


def fit_curve(
    probes: Sequence[Probe],
    *,
    unique: float | None = None,
    reuse: float = REUSE["masked"],
    bend: float | None = None,
) -> Curve:
    """Weigh the curves on the grid by how well they fit.

    Args:
        probes: four runs or more, of three lengths or more.
        unique: U, tokens of the training split; None: no limit.
        reuse: R.
        bend: of a causal model, the loss from which on its curve bends; None: of another one.

    Raises:
        DataError: too few probes, or none that learned more than the shortest.
    """
    if not are_enough(probes):
        raise DataError(
            f"{len(probes)} probes of {len({p.tokens for p in probes})} lengths say too little of a curve.",
            hint="finish the probes: four of them, of three lengths",
        )
    used = _past_the_plateau(probes)
    past = [] if bend is None else [p for p in used if p.loss < bend]
    is_bent = are_enough(past)
    if is_bent:
        used, bend = past, None
    left_out = tuple(p for p in probes if p not in used)
    probes = used
    n = np.array([p.parameters for p in probes])
    d = np.array([effective_tokens(p.tokens, unique, reuse) for p in probes])
    y = np.array([p.loss for p in probes])
    if y[int(d.argmax())] >= y[int(d.argmin())]:
        raise DataError("longer probes did not end lower than shorter ones.", hint="train longer probes")
    scale = (float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean())))
    has_sizes = len(set(n.tolist())) > 1
    number = 3 if has_sizes else 2
    found = []
    for a in _SIZE_EXPONENTS if has_sizes else (0.0,):
        for b in _EXPONENTS:
            columns = np.stack(
                [np.ones_like(d), _fall(d / scale[1], b), (n / scale[0]) ** -a][:number], axis=1
            )
            spread = np.linalg.inv(columns.T @ columns)
            terms = spread @ (columns.T @ y)
            if terms[1] <= 0.0 or (has_sizes and terms[2] < 0.0):  # longer or larger must not be worse
                continue
            squares = float(((y - columns @ terms) ** 2).sum()) + _PRIOR_WEIGHT * _PRIOR_NOISE**2
            believed = (
                -0.5 * ((b - _BENT) / _BENT_GIVE) ** 2 if is_bent else -max(0.0, b - _EXPECTED) / _BEYOND
            )
            weight = (
                believed
                + 0.5 * np.linalg.slogdet(spread)[1]
                - 0.5 * (len(y) - number + _PRIOR_WEIGHT) * math.log(squares)
            )
            found.append((weight, a, b, terms, spread, squares))
    if not found:
        raise DataError("larger probes did not end lower than smaller ones.", hint="train longer probes")
    logs, size_exponents, exponents, all_terms, spreads, left = (
        np.array(column) for column in zip(*found, strict=True)
    )
    weights = np.exp(logs - logs.max())
    freedom = len(y) + _PRIOR_WEIGHT - number
    return Curve(
        weights=weights / weights.sum(),
        size_exponents=size_exponents,
        exponents=exponents,
        terms=all_terms,
        spreads=spreads,
        noise=np.sqrt(left / freedom),
        freedom=freedom,
        scale=scale,
        unique=unique,
        reuse=reuse,
        used=tuple(used),
        left_out=left_out,
        bend=bend,
    )


def are_enough(probes: Sequence[Probe]) -> bool:
    """Say whether a curve can be fitted: four probes of three lengths."""
    return len(probes) >= 4 and len({p.tokens for p in probes}) >= 3


def _past_the_plateau(probes: Sequence[Probe]) -> Sequence[Probe]:
    """Return the probes below the bigram; where too few are, the lowest of the others with them."""
    past = [p for p in probes if p.loss < p.bigram]
    for probe in sorted((p for p in probes if p not in past), key=lambda p: p.loss):
        if are_enough(past):
            break
        past.append(probe)
    return [p for p in probes if p in past]
