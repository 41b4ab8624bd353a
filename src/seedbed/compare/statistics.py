"""Say which of several arms differ, from scores of all of them under the same seeds or at the same test items.

Scores come in blocks: a seed (the same order of rows, the same masks for every arm) or a test item. What a block does to all arms
alike, an easy item or a lucky order, drops out. Every pair of arms is compared, and the chance of a false alarm anywhere among
them is held at the level asked for.

Source: Tukey's test of all pairs in a randomised block design (Tukey 1953; Scheffe, The Analysis of Variance, 1959, 3.6 and
4.2). Few blocks: one variance pooled over all arms, which is what makes three seeds of eight arms say anything (14 degrees of
freedom where a pair alone has 2). From `POOLED_BELOW` blocks on: the variance of each pair's own differences, as in Games and
Howell (1976), since items are not alike and arms of one kind are right on the same ones. Differs from them: paired.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from seedbed.errors import DependencyError

__all__ = ["POOLED_BELOW", "Contrast", "Differences", "compare_blocks", "needed_blocks", "spread_interval"]

Array = np.ndarray[Any, np.dtype[np.float64]]

POOLED_BELOW = 30
"""Blocks from which a pair's own variance is known well enough."""

_MAX_NEEDED = 100


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
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    is_found: bool
    ranges: float
    arms: int
    freedom: int

    @property
    def p(self) -> float:
        """Return the chance that any two of as many equal arms lie as far apart (milliseconds: it is an integral)."""
        if math.isinf(self.ranges):
            return 0.0
        return min(
            1.0, max(0.0, float(_scipy_stats().studentized_range.sf(self.ranges, self.arms, self.freedom)))
        )


@dataclass(frozen=True, slots=True)
class Differences:
    """What several arms' scores say.

    Attributes:
        means: by arm, over the blocks all of them have.
        blocks: how many those are.
        level: chance of a false alarm anywhere.
        contrasts: every pair of arms, in order.
        noise: standard deviation of a score once arm and block are taken out, pooled.
        half_width: two arms whose means lie further apart than twice this differ; what charts draw. 0 where it varies by pair.
    """

    means: Mapping[str, float]
    blocks: int
    level: float
    contrasts: Sequence[Contrast]
    noise: float
    half_width: float

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
    residual = table - means[:, None] - table.mean(axis=0)[None] + table.mean()
    freedom = (arms - 1) * (blocks - 1)
    noise = math.sqrt(float((residual**2).sum()) / freedom)
    if not is_pooled:
        freedom = blocks - 1
    critical = _critical(level, arms, freedom)
    contrasts = []
    for i, first in enumerate(names):
        for j in range(i + 1, arms):
            gap = float(means[i] - means[j])
            # Of a mean, as the studentized range has it: that of a difference over the root of two.
            error = noise if is_pooled else float((table[i] - table[j]).std(ddof=1)) / math.sqrt(2.0)
            error /= math.sqrt(blocks)
            tiny = 1e-9 * max(1.0, abs(float(means[i])))
            if error < 1e-3 * tiny:  # apart by the same in every block, but for rounding
                error, gap = 0.0, 0.0 if abs(gap) < tiny else gap
            ranges = abs(gap) / error if error else math.inf if gap else 0.0
            contrasts.append(
                Contrast(
                    first=first,
                    second=names[j],
                    difference=gap,
                    low=gap - critical * error,
                    high=gap + critical * error,
                    is_found=ranges > critical,
                    ranges=ranges,
                    arms=arms,
                    freedom=freedom,
                )
            )
    return Differences(
        means=dict(zip(names, map(float, means), strict=True)),
        blocks=blocks,
        level=level,
        contrasts=contrasts,
        noise=noise,
        half_width=critical * noise / math.sqrt(blocks) / 2 if is_pooled else 0.0,
    )


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
def _critical(level: float, arms: int, freedom: int) -> float:
    """Return the studentized range that equal arms exceed with the chance `level`."""
    return float(_scipy_stats().studentized_range.isf(level, arms, freedom))


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise DependencyError("scipy", extra="tune", needed_for="comparing arms") from error
    return stats
