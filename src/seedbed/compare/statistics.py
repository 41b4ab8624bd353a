"""Say which of several arms differ, from scores of all of them under the same seeds or at the same test items.

Scores come in blocks: a seed (the same order of rows, the same masks for every arm) or a test item. What a block does to all arms
alike, an easy item or a lucky order, drops out. Every pair of arms is compared, and the chance of a false alarm anywhere among
them is held at the level asked for.

Source: Tukey's test of all pairs in a randomised block design (Tukey 1953; Scheffe, The Analysis of Variance, 1959, 3.6 and
4.2). Few blocks: one variance pooled over all arms, which is what makes three seeds of eight arms say anything (14 degrees of
freedom where a pair alone has 2). Where an arm lacks a seed the others have, arms and blocks are fitted by least squares and
each pair has the standard error its own runs give it (Kramer 1956, 1957): no run is thrown away for another that is missing.
One arm whose seeds scatter far more than the others' would widen that spread for all of them: such an arm is set apart. The
others are told apart by the spread that is left, and it is told from them by its own, with Satterthwaite's degrees of freedom;
each of the two families of tests then has half of the level. From `POOLED_BELOW` blocks on: the variance of each pair's own
differences, as in Games and Howell (1976), since items are not alike and arms of one kind are right on the same ones. Differs
from them: paired, at the items all arms have.
"""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seedbed.errors import DependencyError

__all__ = [
    "POOLED_BELOW",
    "Contrast",
    "Differences",
    "adjusted_means",
    "compare_blocks",
    "letters",
    "needed_blocks",
    "spread_interval",
]

Array = np.ndarray[Any, np.dtype[np.float64]]

POOLED_BELOW = 30
"""Blocks from which a pair's own variance is known well enough."""

_MAX_NEEDED = 100
_UNSTEADY_LEVEL = 0.01


@dataclass(frozen=True, slots=True)
class Contrast:
    """How two arms differ.

    Attributes:
        first, second: their names.
        difference: mean score of the first minus that of the second.
        low, high: interval of it that holds for all pairs at once.
        is_found: the interval excludes 0, so that the arms differ at the level.
        ranges: the difference in standard errors of a mean; infinite where the arms differ by the same in every block.
        arms, freedom: arms compared, degrees of freedom of the error.
        tests: among how many tests of this kind the level is shared out.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    is_found: bool
    ranges: float
    arms: int
    freedom: float
    tests: int = 1

    @property
    def p(self) -> float:
        """Return the chance that any two of as many equal arms lie as far apart (milliseconds: it is an integral)."""
        if math.isinf(self.ranges):
            return 0.0
        chance = float(_scipy_stats().studentized_range.sf(self.ranges, self.arms, self.freedom))
        return min(1.0, max(0.0, self.tests * chance))


@dataclass(frozen=True, slots=True)
class Differences:
    """What several arms' scores say.

    Attributes:
        means: by arm; over seeds, what its mean would be if it had all of them (least squares), so that luck an arm missed
            does not count against it.
        blocks: seeds, or items, that say something.
        missing: scores that are not there, of arms times blocks.
        level: chance of a false alarm anywhere.
        contrasts: every pair of arms, in order.
        noise: standard deviation of a score once arm and block are taken out, pooled over the arms that are not set apart.
        reaches: by arm, how far a whisker goes from its mean where two arms differ whose whiskers do not touch; empty for
            items. Exact where all arms have all blocks and at most one is set apart, else the nearest there is.
        unsteady: arms that are set apart, since they scatter more than the others, with their own standard deviations.
    """

    means: Mapping[str, float]
    blocks: int
    missing: int
    level: float
    contrasts: Sequence[Contrast]
    noise: float
    reaches: Mapping[str, float]
    unsteady: Mapping[str, float] = field(default_factory=dict)

    def between(self, first: str, second: str) -> Contrast:
        """Return the contrast of two arms, the way round they are named."""
        for c in self.contrasts:
            if (c.first, c.second) == (first, second):
                return c
            if (c.second, c.first) == (first, second):
                return replace(
                    c, first=first, second=second, difference=-c.difference, low=-c.high, high=-c.low
                )
        raise KeyError((first, second))

    def differ(self, first: str, second: str) -> bool:
        """Say whether two arms differ at the level."""
        return self.between(first, second).is_found


def compare_blocks(
    scores: Mapping[str, Mapping[Any, float]], *, level: float = 0.05, pooled_below: int = POOLED_BELOW
) -> Differences | None:
    """Compare arms at the blocks they share.

    Args:
        scores: by arm, its score in each block; finite.
        level: of the chance that equal arms are found to differ anywhere.
        pooled_below: with fewer blocks, one variance serves all pairs, and an arm may lack some of them.

    Returns:
        None where nothing can be said: fewer than two arms or blocks, or no score more than arms and blocks take to fit.
        Arms that share no block with the others, by way of further arms either, are left out.
    """
    names, table = _table(scores)
    if table.shape[1] >= pooled_below:
        names, table = list(scores), np.array([list(own.values()) for own in _common(scores)])
        return _compare_items(names, table, level) if min(table.shape, default=0) > 1 else None
    if len(names) < 2 or _freedom(table) < 1:
        return None
    return _compare_seeds(names, table, level)


def adjusted_means(scores: Mapping[str, Mapping[Any, float]]) -> dict[str, float]:
    """Return what each arm's mean would be if it had every block (least squares); without a link to the others, its own mean."""
    means = {name: math.fsum(own.values()) / len(own) for name, own in scores.items()}
    names, table = _table(scores)
    if len(names) > 1 and np.isnan(table).any():
        means |= dict(zip(names, _Fit.of(table).arms().tolist(), strict=True))
    return means


def _common(scores: Mapping[str, Mapping[Any, float]]) -> list[dict[Any, float]]:
    """Return the scores in the blocks all arms have, in one order."""
    first = next(iter(scores.values()))
    shared = [b for b in first if all(b in own for own in scores.values())]
    return [{b: own[b] for b in shared} for own in scores.values()]


def _table(scores: Mapping[str, Mapping[Any, float]]) -> tuple[list[str], Array]:
    """Return the arms and their scores (arms, blocks), NaN where there is none: the largest part that hangs together."""
    names = list(scores)
    blocks = list(dict.fromkeys(block for own in scores.values() for block in own))
    table = np.array(
        [[scores[name].get(block, math.nan) for block in blocks] for name in names], dtype=np.float64
    ).reshape(len(names), len(blocks))
    table = table[:, (~np.isnan(table)).sum(axis=0) > 1]  # a score nothing else is held against says nothing
    has = ~np.isnan(table)
    parts: list[set[int]] = []
    for arm in range(len(names)):
        touching = [part for part in parts if (has[arm] & has[sorted(part)].any(axis=0)).any()]
        parts = [part for part in parts if part not in touching] + [{arm}.union(*touching)]
    parts.sort(key=lambda part: (-len(part), min(part)))
    kept = sorted(parts[0]) if parts else []
    table = table[kept]
    return [names[i] for i in kept], table[:, (~np.isnan(table)).any(axis=0)]


def _freedom(table: Array) -> int:
    """Return the degrees of freedom that are left once arms and blocks of a table that hangs together are fitted."""
    arms, blocks = table.shape
    return int(np.count_nonzero(~np.isnan(table))) - int(arms) - int(blocks) + 1


def _hangs_together(table: Array) -> bool:
    has = ~np.isnan(table)
    if not has.any(axis=1).all():
        return False
    reached = has[0]
    for _ in range(len(table)):
        reached = has[(has & reached).any(axis=1)].any(axis=0)
    return bool((has & reached).any(axis=1).all())


@dataclass(frozen=True, slots=True)
class _Fit:
    """Arms and blocks fitted by least squares, score = arm + block.

    Attributes:
        terms: (A + B,) of arms, then of blocks; only sums of an arm and a block, and differences, mean something.
        spread: (A + B, A + B) their covariance in units of the noise.
        num_arms: A.
        squares: sum of squares left.
        freedom: degrees of freedom of them.
    """

    terms: Array
    spread: Array
    num_arms: int
    squares: float
    freedom: int

    @classmethod
    def of(cls, table: Array) -> _Fit:
        """Fit a table (arms, blocks) that hangs together; NaN: missing."""
        arms, blocks = table.shape
        at_arm, at_block = np.nonzero(~np.isnan(table))
        scores = table[at_arm, at_block]
        design = np.zeros((len(scores), arms + blocks))
        rows = np.arange(len(scores))
        design[rows, at_arm] = 1.0
        design[rows, arms + at_block] = 1.0
        middle = float(scores.mean())
        spread = np.linalg.pinv(design.T @ design, hermitian=True)
        terms = spread @ (design.T @ (scores - middle))
        left = scores - middle - design @ terms
        terms[:arms] += middle
        return cls(terms, spread, arms, float(left @ left), _freedom(table))

    @property
    def noise(self) -> float:
        """Return the standard deviation of a score."""
        return math.sqrt(self.squares / self.freedom)

    def arms(self) -> Array:
        """Return each arm's mean over all blocks, (A,)."""
        of_arms, of_blocks = np.split(self.terms, [self.num_arms])
        means: Array = of_arms + of_blocks.mean()
        return means

    def variance(self, weights: Array) -> float:
        """Return the variance of a sum of terms with these weights (A + B,), in units of the noise's."""
        return max(0.0, float(weights @ self.spread @ weights))


@dataclass(frozen=True, slots=True)
class _Gap:
    """What two arms are held apart by: the gap, its standard error as the studentized range has it, and the test."""

    gap: float
    error: float
    freedom: float
    among: int
    tests: int

    def contrast(self, first: str, second: str, level: float, size: float) -> Contrast:
        """Return the contrast; `size` is that of the scores, which says what is rounding."""
        gap, error = self.gap, self.error
        tiny = 1e-9 * max(1.0, abs(size))
        if error < 1e-3 * tiny:  # apart by the same in every block, but for rounding
            error, gap = 0.0, 0.0 if abs(gap) < tiny else gap
        ranges = abs(gap) / error if error else math.inf if gap else 0.0
        critical = _critical(level / self.tests, self.among, self.freedom)
        return Contrast(
            first=first,
            second=second,
            difference=gap,
            low=gap - critical * error,
            high=gap + critical * error,
            is_found=ranges > critical,
            ranges=ranges,
            arms=self.among,
            freedom=self.freedom,
            tests=self.tests,
        )


def _compare_items(names: Sequence[str], table: Array, level: float) -> Differences:
    """Compare by the variance of each pair's own differences."""
    arms, blocks = table.shape
    means = table.mean(axis=1)
    contrasts = []
    for i, j in itertools.combinations(range(arms), 2):
        # Of a mean, as the studentized range has it: that of a difference over the root of two.
        error = float((table[i] - table[j]).std(ddof=1)) / math.sqrt(2.0 * blocks)
        told = _Gap(float(means[i] - means[j]), error, blocks - 1, arms, 1)
        contrasts.append(told.contrast(names[i], names[j], level, means[i]))
    residual = table - means[:, None] - table.mean(axis=0) + table.mean()
    return Differences(
        means=dict(zip(names, map(float, means), strict=True)),
        blocks=blocks,
        missing=0,
        level=level,
        contrasts=contrasts,
        noise=math.sqrt(float((residual**2).sum()) / ((arms - 1) * (blocks - 1))),
        reaches={},
    )


def _compare_seeds(names: Sequence[str], table: Array, level: float) -> Differences:
    """Compare by one variance of all arms that are not set apart."""
    apart = _unsteady(table)
    steady = [i for i in range(len(table)) if i not in apart]
    table = table[:, (~np.isnan(table[steady])).any(axis=0)]
    fit = _Fit.of(table[steady])
    shares = 2 if apart else 1
    weights = {i: _weights(fit, table, steady, i) for i in range(len(table))}
    own = {i: float(np.nanmean(table[i])) if i in apart else 0.0 for i in weights}
    counts = (~np.isnan(table)).sum(axis=1)
    means = {i: float(own[i] + weights[i] @ fit.terms) for i in weights}
    contrasts = []
    for i, j in itertools.combinations(weights, 2):
        shared = fit.noise**2 * fit.variance(weights[i] - weights[j])
        parts = [
            (shared, fit.freedom),
            *((apart[k] ** 2 / counts[k], counts[k] - 1) for k in (i, j) if k in apart),
        ]
        among, tests, freedom = len(steady), shares, float(fit.freedom)
        if i in apart or j in apart:
            among, tests = 2, shares * len(apart)  # its own spread is nearly all there is: one test of it
            freedom = _satterthwaite(parts)
        error = math.sqrt(sum(variance for variance, _ in parts) / 2)
        told = _Gap(means[i] - means[j], error, freedom, among, tests)
        contrasts.append(told.contrast(names[i], names[j], level, means[i]))
    return Differences(
        means={names[i]: mean for i, mean in means.items()},
        blocks=table.shape[1],
        missing=int(np.isnan(table).sum()),
        level=level,
        contrasts=contrasts,
        noise=fit.noise,
        reaches=_reaches(contrasts, [names[i] for i in steady]),
        unsteady={names[i]: spread for i, spread in apart.items()},
    )


def _weights(fit: _Fit, table: Array, steady: Sequence[int], arm: int) -> Array:
    """Return the weights (A + B,) of the fit's terms in an arm's mean over all blocks.

    Of an arm that is set apart: what is added to the mean of its own scores, since its blocks may not be all of them.
    """
    weights = np.zeros(len(fit.terms))
    blocks = weights[fit.num_arms :]
    blocks += 1.0 / len(blocks)
    if arm in steady:
        weights[steady.index(arm)] = 1.0
    else:
        has = ~np.isnan(table[arm])
        blocks -= has / has.sum()
    return weights


def _reaches(contrasts: Sequence[Contrast], steady: Sequence[str]) -> dict[str, float]:
    """Return the whiskers whose sums come nearest to what pairs must lie apart to differ."""
    halves = {(c.first, c.second): (c.high - c.low) / 2 for c in contrasts}
    pairs = [pair for pair in halves if set(pair) <= set(steady)]
    design = np.array([[float(name in pair) for name in steady] for pair in pairs])
    # For two arms one number is asked for twice: the least squares of least norm gives both the same.
    found = np.linalg.lstsq(design, np.array([halves[pair] for pair in pairs]), rcond=None)[0]
    reaches = dict(zip(steady, np.maximum(found, 0.0).tolist(), strict=True))
    for name in {name for pair in halves for name in pair} - set(steady):
        over = [
            half - reaches[other]
            for pair, half in halves.items()
            if name in pair
            for other in pair
            if other in steady
        ]
        reaches[name] = max(0.0, max(over))
    return reaches


def _unsteady(table: Array) -> dict[int, float]:
    """Return the arms whose scores scatter more than those of all others, with their spreads.

    One after the other, the least steady first, by the F test of an arm's variance, about the blocks as the others have them,
    against the variance that the others have among themselves; at 1 % for all arms together, so that equal arms are hardly
    ever parted.
    """
    stats = _scipy_stats()
    apart: dict[int, float] = {}
    while True:
        rest = [i for i in range(len(table)) if i not in apart]
        if len(rest) < 3:
            return apart
        whole = table[rest]
        fit = _Fit.of(whole[:, (~np.isnan(whole)).any(axis=0)])
        suspects = []
        for i in rest:
            others = table[[k for k in rest if k != i]]
            held = (~np.isnan(others)).any(axis=0)
            others, own = others[:, held], table[i, held]
            has = ~np.isnan(own)
            if has.sum() < 2 or not _hangs_together(others) or _freedom(others) < 1:
                continue
            without = _Fit.of(others)
            freedom = int(has.sum()) - 1
            extra = max(0.0, fit.squares - without.squares) / freedom
            ratio = extra / without.noise**2 if without.noise else 0.0
            chance = float(stats.f.sf(ratio, freedom, without.freedom))
            blocks = without.num_arms + np.nonzero(has)[0]
            centre = np.eye(len(blocks)) - 1.0 / len(blocks)
            leaked = float(np.trace(centre @ without.spread[np.ix_(blocks, blocks)] @ centre)) / freedom
            deviations = own[has] - without.terms[blocks]
            variance = float(deviations.var(ddof=1)) - leaked * without.noise**2
            suspects.append((chance, i, math.sqrt(max(variance, 0.0))))
        if not suspects:
            return apart
        chance, i, spread = min(suspects)
        if chance * len(rest) > _UNSTEADY_LEVEL:
            return apart
        apart[i] = spread


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Return the degrees of freedom of a sum of variances, each with its own."""
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts) if total else parts[0][1]


def letters(ranking: Sequence[str], apart: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return each arm's letters: two arms share one exactly where they are not told apart.

    Source: Piepho (2004), An algorithm for a letter-based representation of all-pairwise comparisons, insert and absorb.

    Args:
        ranking: arms, best first; the best has an "a".
        apart: pairs that were found to differ.
    """
    groups: list[set[str]] = [set(ranking)]
    for first, second in apart:
        split = []
        for group in groups:
            split += [group - {first}, group - {second}] if {first, second} <= group else [group]
        groups = []
        for group in sorted(split, key=len, reverse=True):
            if not any(group <= other for other in groups):
                groups.append(group)
    groups.sort(key=lambda group: sorted(ranking.index(arm) for arm in group))
    signs = [*string.ascii_lowercase, *string.ascii_uppercase]
    return {
        arm: "".join(signs[n % len(signs)] for n, group in enumerate(groups) if arm in group)
        for arm in ranking
    }


def needed_blocks(
    difference: float, noise: float, arms: int, *, level: float = 0.05, power: float = 0.8
) -> int:
    """Return the blocks (seeds) at which a difference of this size is found with this chance; `_MAX_NEEDED` means that or more.

    Args:
        difference: of two arms' true means.
        noise: standard deviation of a score, arm and block taken out.
        arms: compared at once.
        level: of false alarms.
        power: chance to find it. The critical value is the exact one, the chance is a normal approximation.
    """
    if difference == 0.0:
        return _MAX_NEEDED
    reserve = math.sqrt(2.0) * _normal_quantile(power)
    for blocks in range(2, _MAX_NEEDED):
        critical = _critical(level, arms, (arms - 1) * (blocks - 1))
        if abs(difference) >= (critical + reserve) * noise / math.sqrt(blocks):
            return blocks
    return _MAX_NEEDED


def spread_interval(values: Sequence[float], *, level: float = 0.05) -> tuple[float, float] | None:
    """Return the t interval of the mean of one arm's scores, by itself; None for fewer than two."""
    if len(values) < 2:
        return None
    array = np.asarray(values, dtype=np.float64)
    reach = _student(level, len(values) - 1) * float(array.std(ddof=1)) / math.sqrt(len(values))
    return float(array.mean()) - reach, float(array.mean()) + reach


def _student(level: float, freedom: float) -> float:
    stats = _scipy_stats()
    return float(stats.t.isf(level / 2, freedom))


def _normal_quantile(share: float) -> float:
    return float(_scipy_stats().norm.ppf(share))


@functools.lru_cache(maxsize=1024)
def _critical(level: float, arms: int, freedom: float) -> float:
    """Return the studentized range that equal arms exceed with the chance `level`."""
    if arms == 2:  # Student's t but for a factor, and a thousand times as fast
        return math.sqrt(2.0) * _student(level, freedom)
    return float(_scipy_stats().studentized_range.isf(level, arms, freedom))


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise DependencyError("scipy", extra="tune", needed_for="comparing arms") from error
    return stats
