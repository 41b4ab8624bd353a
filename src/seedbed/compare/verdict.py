"""Say what the finished arms of a comparison show: which differ, by what measure, at which cost, and how sure that is.

Likelihoods are compared within a kind only: a causal model's bits per byte, a masked model's loss at the same hidden tokens.
Across kinds stand minimal pairs and tasks. Replaced-token and contrastive models have no likelihood at all.

A result is what `commands/compare.py` writes of an arm under a seed; its keys are read here and nowhere else but on the page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from seedbed.compare.statistics import Differences, adjusted_means, compare_blocks, needed_blocks

__all__ = ["Measure", "Verdict", "frontier", "judge", "measures_of", "set_apart"]

_WORTHWHILE = 0.9
"""An arm that is not told from the first one is advised in its place where it costs less than this share of it."""

_UNEQUAL = 0.1
"""Share of minimal pairs of two lengths from which those of one length decide."""

_WORTH = {"0": 0.0, "h": 0.5, "1": 1.0}

Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""By arm and seed."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One way to score arms.

    Attributes:
        key: such as "likelihood:masked", "minimal_pairs", "probe:sst2".
        label: for people, with its unit.
        is_higher_better: direction.
        scores: by arm and seed.
        items: by arm, its score at each test item in the mean over seeds, where there are items.
    """

    key: str
    label: str
    is_higher_better: bool
    scores: Mapping[str, Mapping[int, float]]
    items: Mapping[str, Mapping[Any, float]] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Return each arm's mean over the seeds, best first: what it would be if no arm lacked a seed that others have."""
        found = adjusted_means(self.scores)
        order = sorted(found, key=found.__getitem__, reverse=self.is_higher_better)
        return {arm: found[arm] for arm in order}

    @property
    def is_share(self) -> bool:
        """Say whether scores are shares, told in percent."""
        return self.key.startswith("minimal_pairs") or "accuracy" in self.label

    def goodness(self, value: float) -> float:
        """Return a value so that higher is better."""
        return value if self.is_higher_better else -value


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison says.

    Attributes:
        measure: what it goes by, or None where no arm is finished.
        differences: between arms by that measure, over seeds, or over test items where there is one seed; None: nothing to say.
        over: "seeds" or "items".
        ranking: arms, best mean first.
        best: those that nothing is found better than: the first, and all that do not differ from it.
        worse: those found worse than the first.
        advised: the first, or another of the best that takes a tenth less time.
        sentences: the recommendation.
    """

    measure: Measure | None
    differences: Differences | None
    over: str
    ranking: Sequence[str]
    best: Sequence[str]
    worse: Sequence[str]
    advised: str | None
    sentences: Sequence[str]


def measures_of(results: Results) -> list[Measure]:
    """Return every measure that two arms or more have."""
    found: list[Measure] = []
    kinds = sorted({str(r["kind"]) for r in results.values() if r.get("likelihood") is not None})
    for kind in kinds:
        scores = _collect(results, lambda r, kind=kind: r["likelihood"] if r["kind"] == kind else None)
        unit = next(str(r["likelihood_unit"]) for r in results.values() if r["kind"] == kind)
        found.append(Measure(f"likelihood:{kind}", f"{kind}: {unit}", False, scores))
    found += _of_pairs(results)
    for way in ("probe", "finetune"):
        names = sorted({name for r in results.values() for name in r.get(f"{way}s") or {}})
        for name in names:
            scores = _collect(
                results, lambda r, name=name, way=way: (r.get(f"{way}s") or {}).get(name, {}).get("score")
            )
            metric = next(
                r[f"{way}s"][name]["metric"] for r in results.values() if name in (r.get(f"{way}s") or {})
            )
            found.append(Measure(f"{way}:{name}", f"{name}, {way} ({metric})", True, scores))
        if len(names) > 1:
            found.append(
                _mean_of(
                    f"{way}s", f"mean over tasks ({way})", [m for m in found if m.key.startswith(f"{way}:")]
                )
            )
    return [m for m in found if len(m.scores) > 1]


def judge(results: Results, *, by: str = "auto", level: float = 0.05, cost: str = "tokens") -> Verdict:
    """Compare the finished arms and put the outcome into words.

    Args:
        results: by arm and seed.
        by: as `JudgeConfig.by`.
        level: of false alarms.
        cost: what was equal; what the cheaper of equals is cheaper in follows from it.
    """
    measure = _chosen(measures_of(results), results, by)
    if measure is None:
        return Verdict(
            None, None, "seeds", [], [], [], None, ["Fewer than two arms are finished that can be compared."]
        )
    ranking = list(measure.means())
    over, differences = "seeds", compare_blocks(measure.scores, level=level)
    if differences is None and len(measure.items) > 1:
        over, differences = "items", compare_blocks(measure.items, level=level)
    first = ranking[0]
    known = set(differences.means) if differences is not None else set()
    worse = [
        a
        for a in ranking[1:]
        if differences is not None and {first, a} <= known and differences.differ(first, a)
    ]
    best = [a for a in ranking if a not in worse]
    prices = {arm: _price(results, arm, cost) for arm in best}
    advised = None
    if differences is not None:
        cheapest = _cheapest(best, prices)
        advised = best[0] if cost == "minutes" else cheapest  # at equal minutes the prices are memory
    verdict = Verdict(measure, differences, over, ranking, best, worse, advised, [])
    return Verdict(
        measure,
        differences,
        over,
        ranking,
        best,
        worse,
        advised,
        _sentences(verdict, results, level=level, cost=cost),
    )


def frontier(points: Mapping[str, tuple[float, float]], *, is_higher_better: bool) -> list[str]:
    """Return the names of (cost, quality) points that nothing cheaper, or as cheap, beats; by rising cost."""
    kept: list[str] = []
    best = -math.inf
    sign = 1.0 if is_higher_better else -1.0
    for name, (_, quality) in sorted(points.items(), key=lambda p: (p[1][0], -sign * p[1][1])):
        if sign * quality > best:
            kept.append(name)
            best = sign * quality
    return kept


def set_apart(unsteady: Mapping[str, float], noise: float) -> str:
    """Return the sentence on arms that scatter more than the others."""
    each = _listed([f"{arm} (spread {spread:.3g})" for arm, spread in unsteady.items()])
    return (
        f"{each} {'varies' if len(unsteady) == 1 else 'vary'} from seed to seed far more than the others ({noise:.3g}): told from"
        " them by that spread, and the others from one another without it."
    )


def _collect(results: Results, value_of: Any) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for (arm, seed), result in results.items():
        value = value_of(result)
        if value is not None and math.isfinite(float(value)):
            found.setdefault(arm, {})[seed] = float(value)
    return found


def _of_pairs(results: Results) -> list[Measure]:
    """Return what minimal pairs say: first those of one length, where sums over tokens favour the shorter of many others."""
    told = {key: r["minimal_pairs"] for key, r in results.items() if r.get("minimal_pairs")}
    if not told:
        return []
    every = _collect(results, lambda r: (r.get("minimal_pairs") or {}).get("accuracy"))
    plain = Measure("minimal_pairs", "minimal pairs right", True, every, _items(told))
    longer = {str(own["longer"]) for own in told.values() if "longer" in own}
    if any("longer" not in own for own in told.values()) or len({len(row) for row in longer}) != 1:
        return [plain]  # written by an earlier release, or judged by other pairs
    places = [place for place, signs in enumerate(zip(*longer, strict=True)) if set(signs) == {"="}]
    total = len(next(iter(longer)))
    if not places or len(places) > (1.0 - _UNEQUAL) * total:
        return [plain]
    kept = {key: [_WORTH[own["points"][place]] for place in places] for key, own in told.items()}
    one: dict[str, dict[int, float]] = {}
    for (arm, seed), points in kept.items():
        one.setdefault(arm, {})[seed] = statistics.fmean(points)
    per_token = _collect(results, lambda r: (r.get("minimal_pairs") or {}).get("per_token"))
    return [
        Measure(
            "minimal_pairs:one_length",
            f"minimal pairs of one length right ({len(places):,} of {total:,})",
            True,
            one,
            _items(told, places),
        ),
        replace(plain, label="all minimal pairs right, by sums"),
        Measure(
            "minimal_pairs:per_token",
            "all minimal pairs right, by means over tokens",
            True,
            per_token,
            _items(told, key="points_per_token"),
        ),
    ]


def _items(
    told: Mapping[tuple[str, int], Mapping[str, Any]],
    places: Sequence[int] | None = None,
    *,
    key: str = "points",
) -> dict[str, dict[int, float]]:
    """Return each arm's points at each pair, or at some of them, the mean over its seeds."""
    found: dict[str, dict[int, float]] = {}
    for arm in dict.fromkeys(arm for arm, _ in told):
        rows = [str(own[key]) for (a, _), own in told.items() if a == arm and own.get(key)]
        if rows and len({len(row) for row in rows}) == 1:
            chosen = range(len(rows[0])) if places is None else places
            found[arm] = {place: statistics.fmean(_WORTH[row[place]] for row in rows) for place in chosen}
    return found


def _mean_of(key: str, label: str, parts: Sequence[Measure]) -> Measure:
    """Return the mean over tasks, of arms and seeds that have all of them."""
    scores: dict[str, dict[int, float]] = {}
    for arm in parts[0].scores:
        seeds = [s for s in parts[0].scores[arm] if all(s in p.scores.get(arm, {}) for p in parts)]
        if seeds:
            scores[arm] = {s: statistics.fmean(p.scores[arm][s] for p in parts) for s in seeds}
    return Measure(key, label, True, scores)


def _chosen(measures: Sequence[Measure], results: Results, by: str) -> Measure | None:
    arms = {arm for arm, _ in results}
    likelihoods = [m for m in measures if m.key.startswith("likelihood:")]
    others = [m for m in measures if m.key.startswith("minimal_pairs") or m.key in ("probes", "finetunes")]
    others += [m for m in measures if m.key.startswith(("probe:", "finetune:"))]
    if by == "likelihood":
        return max(likelihoods, key=lambda m: len(m.scores), default=None)
    if by == "auto":
        whole = [m for m in [*likelihoods, *others] if set(m.scores) == arms]
        return whole[0] if whole else max([*others, *likelihoods], key=lambda m: len(m.scores), default=None)
    return next((m for m in others if m.key.partition(":")[0] in (by, by.removesuffix("s"))), None)


def _price(results: Results, arm: str, cost: str) -> float:
    """Return what an arm costs in what was not made equal: seconds, or where those are equal, memory."""
    key = "peak_memory_bytes" if cost == "minutes" else "train_seconds"
    return statistics.fmean(float(r[key]) for (a, _), r in results.items() if a == arm)


def _cheapest(best: Sequence[str], prices: Mapping[str, float]) -> str:
    """Return the cheapest of arms that are not told apart, or the first of them where that saves less than is worth it."""
    cheapest = min(best, key=lambda a: (prices[a], best.index(a)))
    return cheapest if prices[cheapest] < _WORTHWHILE * prices[best[0]] else best[0]


def _sentences(verdict: Verdict, results: Results, *, level: float, cost: str) -> list[str]:
    """Put it into words: what to take, how sure, what would make it surer."""
    measure, differences, ranking = verdict.measure, verdict.differences, verdict.ranking
    assert measure is not None
    first = ranking[0]
    shown = f"{_shown(measure, measure.means()[first])} ({measure.label})"
    if differences is None:
        seeds = len(measure.scores[first])
        return [
            f"{first} has the best mean, {shown}.",
            f"With {seeds} seed{'s' if seeds > 1 else ''} and no test items in common nothing can be said about chance: "
            "run two seeds or more.",
        ]
    said: list[str] = []
    others = [a for a in verdict.best if a != first]
    number = differences.missing
    lacking = (
        f" ({number} run{'s are' if number > 1 else ' is'} not there, and allowed for)" if number else ""
    )
    basis = (
        f"{differences.blocks} seeds{lacking}"
        if verdict.over == "seeds"
        else f"one seed and {differences.blocks:,} test items; another seed may say something else"
    )
    if not others:
        said.append(f"Take {first}: {shown}, better than every other arm compared.")
    else:
        said.append(
            f"{first} has the best mean, {shown}; {_listed(others)} {'does' if len(others) == 1 else 'do'} not differ from it by"
            " more than chance."
        )
        prices = {arm: _price(results, arm, cost) for arm in verdict.best}
        cheapest = _cheapest(verdict.best, prices)
        if cheapest == first:
            said.append(f"Take {first}; none of them costs a tenth less.")
        elif cost == "minutes":
            said.append(
                f"Take {first}; where memory is short, {cheapest} needs {prices[cheapest] / 2**30:.2f} GiB to train instead of"
                f" {prices[first] / 2**30:.2f}."
            )
        else:
            said.append(
                f"Of these {cheapest} needs the least time: take it unless you can say more than this does."
            )
    if verdict.worse:
        said.append(f"Found worse: {_listed(verdict.worse)}.")
    said.append(
        f"This rests on {basis}. The chance of a false alarm anywhere among the {len(differences.means)} arms is held at"
        f" {level:.0%}."
    )
    if differences.unsteady:
        said.append(set_apart(differences.unsteady, differences.noise))
    if others and verdict.over == "seeds":
        rival = others[0]
        gap = differences.between(first, rival)
        spread = max(differences.unsteady.get(arm, differences.noise) for arm in (first, rival))
        need = needed_blocks(gap.difference, spread, len(differences.means), level=level)
        if need > 50:
            said.append(
                f"{first} and {rival} lie {abs(gap.difference):.3g} apart with a spread of {spread:.3g} from seed to"
                " seed: more seeds will hardly tell them apart; treat them as equal."
            )
        else:
            said.append(
                f"If {first} is as far ahead of {rival} as it looks ({abs(gap.difference):.3g}, spread {spread:.3g}),"
                f" about {need} seeds would show it four times out of five."
            )
    elif verdict.over == "items":
        said.append("Two seeds more would say how much of this is the luck of one run.")
    left = sorted({arm for arm, _ in results} - set(differences.means))
    if left:
        said.append(f"Not compared by this measure: {_listed(left)}.")
    return said


def _shown(measure: Measure, value: float) -> str:
    return f"{value:.1%}" if measure.is_share else f"{value:.3f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
