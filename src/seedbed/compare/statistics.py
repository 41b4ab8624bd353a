"""Say which of several arms differ, from scores of all of them under the same seeds or at the same test items.

Scores come in blocks: a seed (the same order of rows, the same masks for every arm) or a test item. What a block does to all arms
alike, an easy item or a lucky order, drops out. Every pair of arms is compared, and the chance of a false alarm anywhere among
them is held at the level asked for.

Source: Tukey's test of all pairs in a randomised block design (Tukey 1953; Scheffe, The Analysis of Variance, 1959, 3.6 and
4.2). Few blocks: one variance pooled over all arms, which is what makes three seeds of eight arms say anything (14 degrees of
freedom where a pair alone has 2). One arm whose seeds scatter far more than the others' would widen that spread for all of
them: such an arm is set apart. The others are told apart by the spread that is left, and it is told from them by its own, with
Satterthwaite's degrees of freedom; each of the two families of tests then has half of the level. From `POOLED_BELOW` blocks on:
the variance of each pair's own differences, as in Games and Howell (1976), since items are not alike and arms of one kind are
right on the same ones. Differs from them: paired.
"""

from __future__ import annotations

import functools
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
        means: by arm, over the blocks all of them have.
        blocks: how many those are.
        level: chance of a false alarm anywhere.
        contrasts: every pair of arms, in order.
        noise: standard deviation of a score once arm and block are taken out, pooled over the arms that are not set apart.
        half_width: two arms whose means lie further apart than twice this differ; what charts draw. 0 where it varies by pair.
        unsteady: arms that are set apart, since they scatter more than the others, with their own standard deviations.
    """

    means: Mapping[str, float]
    blocks: int
    level: float
    contrasts: Sequence[Contrast]
    noise: float
    half_width: float
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

    def reach(self, arm: str) -> float:
        """Return how far a whisker goes from an arm's mean where two arms differ whose whiskers do not touch; 0: there is none.

        Between two arms that are both set apart this is not exact.
        """
        if arm not in self.unsteady or not self.half_width:
            return self.half_width
        steady = next(name for name in self.means if name not in self.unsteady)
        contrast = self.between(arm, steady)
        return max(0.0, (contrast.high - contrast.low) / 2 - self.half_width)

    def differ(self, first: str, second: str) -> bool:
        """Say whether two arms differ at the level."""
        return self.between(first, second).is_found


def compare_blocks(
    scores: Mapping[str, Mapping[Any, float]], *, level: float = 0.05, pooled_below: int = POOLED_BELOW
) -> Differences | None:
    """Compare arms at the blocks all of them have.

    Args:
        scores: by arm, its score in each block; finite.
        level: of the chance that equal arms are found to differ anywhere.
        pooled_below: with fewer blocks, one variance serves all pairs.

    Returns:
        None with fewer than two arms or two common blocks: nothing can be said.
    """
    names = list(scores)
    if len(names) < 2:
        return None
    common = [b for b in scores[names[0]] if all(b in scores[name] for name in names)]
    if len(common) < 2:
        return None
    table = np.array([[scores[name][b] for b in common] for name in names], dtype=np.float64)
    return _compare(names, table, level=level, is_pooled=len(common) < pooled_below)


def _compare(names: Sequence[str], table: Array, *, level: float, is_pooled: bool) -> Differences:
    arms, blocks = table.shape
    means = table.mean(axis=1)
    apart = _unsteady(table) if is_pooled else {}
    steady = [i for i in range(arms) if i not in apart]
    noise, freedom = _pooled(table[steady])
    shares = 2 if apart else 1
    contrasts = []
    for i, first in enumerate(names):
        for j in range(i + 1, arms):
            gap = float(means[i] - means[j])
            among, tests, spread, degrees = len(steady), shares, noise, float(freedom)
            if not is_pooled:
                # Of a mean, as the studentized range has it: that of a difference over the root of two.
                spread, degrees = float((table[i] - table[j]).std(ddof=1)) / math.sqrt(2.0), blocks - 1
            elif i in apart or j in apart:
                among, tests = 2, shares * len(apart)  # its own spread is nearly all there is: one test of it
                spread, degrees = _welch(
                    [(apart.get(k, noise), blocks - 1 if k in apart else freedom) for k in (i, j)]
                )
            error = spread / math.sqrt(blocks)
            tiny = 1e-9 * max(1.0, abs(float(means[i])))
            if error < 1e-3 * tiny:  # apart by the same in every block, but for rounding
                error, gap = 0.0, 0.0 if abs(gap) < tiny else gap
            ranges = abs(gap) / error if error else math.inf if gap else 0.0
            critical = _critical(level / tests, among, degrees)
            contrasts.append(
                Contrast(
                    first=first,
                    second=names[j],
                    difference=gap,
                    low=gap - critical * error,
                    high=gap + critical * error,
                    is_found=ranges > critical,
                    ranges=ranges,
                    arms=among,
                    freedom=degrees,
                    tests=tests,
                )
            )
    reach = _critical(level / shares, len(steady), freedom) * noise / math.sqrt(blocks)
    return Differences(
        means=dict(zip(names, map(float, means), strict=True)),
        blocks=blocks,
        level=level,
        contrasts=contrasts,
        noise=noise,
        half_width=reach / 2 if is_pooled else 0.0,
        unsteady={names[i]: spread for i, spread in apart.items()},
    )


def _pooled(table: Array) -> tuple[float, int]:
    """Return the spread that is left when arms and blocks are taken out, and its degrees of freedom."""
    arms, blocks = table.shape
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    freedom = (arms - 1) * (blocks - 1)
    return math.sqrt(float((residual**2).sum()) / freedom), freedom


def _unsteady(table: Array) -> dict[int, float]:
    """Return the arms whose scores scatter more than those of all others, with their spreads.

    One after the other, the least steady first, by the F test of an arm's variance, about the mean of the others, against the
    variance that the others have among themselves; at 1 % for all arms together, so that equal arms are hardly ever parted.
    """
    stats, blocks = _scipy_stats(), table.shape[1]
    apart: dict[int, float] = {}
    while True:
        rest = [i for i in range(len(table)) if i not in apart]
        if len(rest) < 3:
            return apart
        suspects = []
        for i in rest:
            others = table[[k for k in rest if k != i]]
            noise, freedom = _pooled(others)
            variance = float((table[i] - others.mean(axis=0)).var(ddof=1))
            leaked = noise**2 / len(others)  # of the others' mean
            ratio = variance / (noise**2 + leaked) if noise else 0.0
            chance = float(stats.f.sf(ratio, blocks - 1, freedom))
            suspects.append((chance, i, math.sqrt(max(variance - leaked, 0.0))))
        chance, i, spread = min(suspects)
        if chance * len(rest) > _UNSTEADY_LEVEL:
            return apart
        apart[i] = spread


def _welch(spreads: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the spread of the difference of two arms over the root of two, and Satterthwaite's degrees of freedom."""
    variances = [(spread**2, freedom) for spread, freedom in spreads]
    total = sum(variance for variance, _ in variances)
    return math.sqrt(total / 2), total**2 / sum(variance**2 / freedom for variance, freedom in variances)


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


def _student(level: float, freedom: int) -> float:
    stats = _scipy_stats()
    return float(stats.t.isf(level / 2, freedom))


def _normal_quantile(share: float) -> float:
    return float(_scipy_stats().norm.ppf(share))


@functools.lru_cache(maxsize=1024)
def _critical(level: float, arms: int, freedom: float) -> float:
    """Return the studentized range that equal arms exceed with the chance `level`."""
    return float(_scipy_stats().studentized_range.isf(level, arms, freedom))


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise DependencyError("scipy", extra="tune", needed_for="comparing arms") from error
    return stats
