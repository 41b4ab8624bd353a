"""Fit how the loss falls with size and tokens, and forecast it with an interval that says what is not known.

The curve of decayed runs (each probe's schedule ends with it) is

    loss(N, D) = E + A (N / N0)^-a + B (D' / D0)^-b,    D' = U + U R (1 - exp(-(D / U - 1) / R)) beyond one pass, else D

with N the parameters that work at a token (a sixth of the operations a token costs), D the tokens read, U those there are, and R
the passes after which a repeated token is hardly worth a new one.

Source: Hoffmann et al., arXiv 2203.15556, approach 3 (the curve); Muennighoff et al., arXiv 2305.16264, section 3 (repeats).
Differs from them: exponents and the floor E are not fitted to one value but weighed on a grid, so a forecast knows how far apart
the curves are that fit as well; it is their mixture with the noise left by the fit. With one size the term of N is left out.
A model first stays near what words and their neighbours predict, then falls off that plateau; on the way it follows no power law,
and a curve through it is steeper than what comes. Probes that did not get below the bigram are therefore left out, as long as
enough of them remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seedbed.errors import DataError

__all__ = ["REUSE", "Curve", "Forecast", "Probe", "effective_tokens", "fit_curve"]

Array = np.ndarray[Any, np.dtype[np.float64]]

REUSE = {"causal": 15.0, "masked": 150.0}
"""R by kind. Causal: 15.4 in Muennighoff et al., table 1. Masked: several times that (masked diffusion gains up to some 500
passes: Prabhudesai et al., arXiv 2507.15857); a forecast beyond a few passes rests on this number, not on probes."""

_EXPONENTS = np.concatenate([np.linspace(0.02, 0.6, 30), np.linspace(0.65, 1.2, 12)])
_SIZE_EXPONENTS = np.linspace(0.05, 0.8, 16)
_FLOORS = 40
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
        floors, sizes, falls: (G,) E, A and B.
        size_exponents, exponents: (G,) a and b.
        noise: (G,) standard deviation of what the curve leaves.
        freedom: degrees of freedom of it.
        scale: (N0, D0).
        unique: U, or None.
        reuse: R.
        used: probes the curves were fitted to; all of them where too few are past the plateau.
        left_out: probes that are still on the plateau.
    """

    weights: Array
    floors: Array
    sizes: Array
    falls: Array
    size_exponents: Array
    exponents: Array
    noise: Array
    freedom: float
    scale: tuple[float, float]
    unique: float | None
    reuse: float
    used: tuple[Probe, ...] = ()
    left_out: tuple[Probe, ...] = ()

    def at(self, parameters: float, tokens: float) -> Array:
        """Return what each curve says of a run, (G,)."""
        n = parameters / self.scale[0]
        d = effective_tokens(tokens, self.unique, self.reuse) / self.scale[1]
        values: Array = self.floors + self.sizes * n**-self.size_exponents + self.falls * d**-self.exponents
        return values

    def forecast(self, parameters: float, tokens: float) -> Forecast:
        """Return the loss a run will end with, and its 90 % interval; the same for the same probes."""
        draw = np.random.default_rng(0)
        chosen = draw.choice(len(self.weights), size=_DRAWS, p=self.weights)
        drawn = self.at(parameters, tokens)[chosen] + self.noise[chosen] * draw.standard_t(
            self.freedom, _DRAWS
        )
        low, middle, high = np.quantile(drawn, [0.05, 0.5, 0.95])
        return Forecast(float(middle), float(low), float(high))


def effective_tokens(tokens: float, unique: float | None, reuse: float) -> float:
    """Return the fresh tokens that so many tokens of a text of `unique` ones are worth."""
    if unique is None or tokens <= unique:
        return tokens
    return unique + unique * reuse * (1.0 - math.exp(-(tokens / unique - 1.0) / reuse))


def fit_curve(
    probes: Sequence[Probe], *, unique: float | None = None, reuse: float = REUSE["masked"]
) -> Curve:
    """Weigh the curves on the grid by how well they fit.

    Args:
        probes: four runs or more, of three lengths or more.
        unique: U, tokens of the training split; None: no limit.
        reuse: R.

    Raises:
        DataError: too few probes, or none that learned more than the shortest.
    """
    if not _are_enough(probes):
        raise DataError(
            f"{len(probes)} probes of {len({p.tokens for p in probes})} lengths say too little of a curve.",
            hint="finish the probes: four of them, of three lengths",
        )
    used = _past_the_plateau(probes)
    left_out = tuple(p for p in probes if p not in used)
    probes = used
    n = np.array([p.parameters for p in probes])
    d = np.array([effective_tokens(p.tokens, unique, reuse) for p in probes])
    y = np.array([p.loss for p in probes])
    if y[int(d.argmax())] >= y[int(d.argmin())]:
        raise DataError("longer probes did not end lower than shorter ones.", hint="train longer probes")
    scale = (float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean())))
    has_sizes = len(set(n.tolist())) > 1
    size_exponents = _SIZE_EXPONENTS if has_sizes else np.zeros(1)
    floors = np.linspace(0.0, 0.995 * float(y.min()), _FLOORS)
    found = []
    for a in size_exponents:
        by_size = (n / scale[0]) ** -a if has_sizes else np.zeros(len(y))
        for b in _EXPONENTS:
            by_tokens = (d / scale[1]) ** -b
            for floor in floors:
                size, fall = _positive(by_size, by_tokens, y - floor)
                if fall <= 0.0:
                    continue
                left = y - floor - size * by_size - fall * by_tokens
                found.append((floor, size, fall, a, b, float((left**2).sum())))
    table = np.array(found)
    squares = table[:, 5] + _PRIOR_WEIGHT * _PRIOR_NOISE**2
    freedom = len(y) + _PRIOR_WEIGHT - (3.0 if has_sizes else 2.0)
    logs = -0.5 * (len(y) + _PRIOR_WEIGHT) * np.log(squares)
    weights = np.exp(logs - logs.max())
    return Curve(
        weights=weights / weights.sum(),
        floors=table[:, 0],
        sizes=table[:, 1],
        falls=table[:, 2],
        size_exponents=table[:, 3],
        exponents=table[:, 4],
        noise=np.sqrt(squares / freedom),
        freedom=freedom,
        scale=scale,
        unique=unique,
        reuse=reuse,
        used=tuple(used),
        left_out=left_out,
    )


def _are_enough(probes: Sequence[Probe]) -> bool:
    return len(probes) >= 4 and len({p.tokens for p in probes}) >= 3


def _past_the_plateau(probes: Sequence[Probe]) -> Sequence[Probe]:
    """Return the probes below the bigram, or all of them where too few are."""
    past = [p for p in probes if p.loss < p.bigram]
    return past if _are_enough(past) else probes


def _positive(first: Array, second: Array, target: Array) -> tuple[float, float]:
    """Return the least-squares weights of two columns, neither below 0."""
    a, b, c = float(first @ first), float(second @ second), float(first @ second)
    x, y = float(first @ target), float(second @ target)
    det = a * b - c * c
    if det > 1e-12 * a * b and a > 0.0:
        u, v = (b * x - c * y) / det, (a * y - c * x) / det
        if u >= 0.0 and v >= 0.0:
            return u, v
    alone = max(0.0, y / b) if b > 0.0 else 0.0
    if a > 0.0 and (u := max(0.0, x / a)) * x > alone * y:  # which of the two fits better by itself
        return u, 0.0
    return 0.0, alone
