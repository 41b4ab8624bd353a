"""One page of a comparison: what to take and how sure that is, the table, quality over cost, curves, where arms differ."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from seedbed.compare.config import CompareConfig
from seedbed.compare.equal_minutes import usable
from seedbed.compare.statistics import compare_blocks, letters, spread_interval
from seedbed.compare.verdict import Measure, frontier, judge, measures_of, set_apart
from seedbed.page import Chart, Dot, Page, Series, Spot, dot_chart, format_number, scatter

__all__ = ["build_page", "drawings", "outcome_of", "overview"]

_LISTED = 4
"""Of more arms than these, pairs are not listed one by one."""

_COSTS = {
    "train_seconds": ("time", "training time (minutes)", 60.0),
    "tokens": ("tokens", "tokens read (millions)", 1e6),
    "flops": ("operations", "operations of matrix products (10^12)", 1e12),
}


def outcome_of(config: CompareConfig, results: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    """Return everything the page says, as JSON values: settings, results, measures with their tests, the verdict."""
    kept, drifted = usable(config, results)
    verdict = judge(kept, by=config.judge.by, level=config.level, cost=config.cost.kind)
    sentences = list(verdict.sentences)
    if drifted:
        listed = ", ".join(f"{arm} (seed {seed})" for arm, seed in sorted(drifted))
        sentences.append(
            f"Left out, because the machine's speed had moved by more than {config.cost.max_drift:.0%} while they ran: {listed}."
            " --again trains them again; on a machine with other work on it, compare at equal tokens or operations."
        )
    missing = [
        f"{arm} (seed {seed})"
        for seed in config.seed_list()
        for arm in config.arms
        if (arm, seed) not in results
    ]
    return {
        "name": config.name,
        "cost": config.cost.model_dump(mode="json"),
        "equal": config.cost.kind,
        "level": config.level,
        "seeds": config.seed_list(),
        "recipe": config.recipe,
        "arms": config.arms,
        "results": [dict(result) for result in results.values()],
        "missing": missing,
        "drifted": [f"{arm}/{seed}" for arm, seed in sorted(drifted)],
        "measures": [_told(measure, config.level) for measure in measures_of(kept)],
        "verdict": {
            "by": verdict.measure.key if verdict.measure else None,
            "over": verdict.over,
            "ranking": list(verdict.ranking),
            "best": list(verdict.best),
            "worse": list(verdict.worse),
            "advised": verdict.advised,
            "sentences": sentences,
        },
    }


def overview(outcome: Mapping[str, Any], *, is_short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of arms, best first.

    Args:
        outcome: of `outcome_of`.
        is_short: for a terminal: the deciding measure and the time only.
    """
    keys = [outcome["verdict"]["by"]] if is_short else _shown_keys(outcome)
    measures = [m for m in outcome["measures"] if m["key"] in keys]
    order = list(outcome["verdict"]["ranking"])
    order += sorted({r["arm"] for r in outcome["results"]} - set(order))
    costs: dict[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
        "minutes": lambda own: f"{_mean(own, 'train_seconds') / 60:.1f}",
        "tokens": lambda own: f"{_mean(own, 'tokens') / 1e6:.2f} M",
        "tokens/s": lambda own: f"{_mean(own, 'tokens_per_second'):,.0f}",
        "peak memory": lambda own: f"{_mean(own, 'peak_memory_bytes') / 2**30:.2f} GiB",
    }
    shown = ["minutes", "tokens/s"] if is_short else list(costs)
    rows = []
    for arm in order:
        own = _counted(outcome, arm)
        cells = [_cell(m, arm) for m in measures]
        rows.append([arm, str(len(own)), *cells, *(costs[name](own) for name in shown)])
    # A terminal has no room for what stands in brackets: of how many pairs, by which metric.
    labels = [m["label"].partition(" (")[0] if is_short else m["label"] for m in measures]
    return ["arm", "seeds", *labels, *shown], rows


def drawings(outcome: Mapping[str, Any]) -> dict[str, str]:
    """Return the page's drawings by name, for documents that are not ours."""
    found = {}
    chosen = _deciding(outcome)
    if chosen is not None:
        found["measure"] = _dots(outcome, chosen)
        for key, (name, label, unit) in _COSTS.items():
            if _is_equal(outcome, chosen, key):
                continue
            found[f"frontier-{name}"] = _frontier(outcome, chosen, key, label, unit)
    return found


def build_page(outcome: Mapping[str, Any]) -> str:
    """Return the page as self-contained HTML."""
    equal = {
        "tokens": "equal tokens",
        "flops": "equal operations",
        "minutes": "equal minutes",
        "own": "each its own budget",
    }[outcome["equal"]]
    arms, seeds = len(outcome["arms"]), len(outcome["seeds"])
    page = Page(
        f"Comparison: {arms} arms",
        lead=f"{equal}, {seeds} seed{'s' if seeds > 1 else ''}; {len(outcome['results'])} of {arms * seeds} runs finished.",
    )
    verdict = outcome["verdict"]
    page.section("What to take")
    page.text(*verdict["sentences"])
    if outcome["missing"]:
        page.text("Not finished yet: " + ", ".join(outcome["missing"]) + ".", is_soft=True)
    if not outcome["results"]:
        return page.html()
    chosen = _deciding(outcome)
    page.section("All arms")
    header, rows = overview(outcome)
    page.table(header, rows, align="l" + "r" * (len(header) - 1))
    page.text(
        "Behind each mean: the interval of that arm by itself over its seeds (95 %), which says where its mean would lie if more"
        " seeds were run. Whether two arms differ is another question, answered below.",
        is_soft=True,
    )
    if chosen is not None:
        page.section("Which differ")
        page.figure(chosen["label"], _dots(outcome, chosen))
        if any(own["reach"] for own in chosen["arms"].values()):
            page.text(
                "Small dots are seeds. Two arms whose whiskers do not touch differ; the chance of finding any difference among"
                f" equal arms is {outcome['level']:.0%} (Tukey's test of all pairs, seeds as blocks).",
                is_soft=True,
            )
        _differences(page, outcome, chosen)
        page.section("Quality over cost")
        for key, (_, label, unit) in _COSTS.items():
            if _is_equal(outcome, chosen, key):
                continue
            page.figure(f"{chosen['label']} over {label}", _frontier(outcome, chosen, key, label, unit))
        page.text("The line joins the arms that nothing cheaper beats.", is_soft=True)
    page.section("Learning curves")
    page.text(
        "Validation loss of each arm's own objective; only arms of one objective compare.", is_soft=True
    )
    charts = [
        Chart(title, "tokens read", "validation loss (nats)", series) for title, series in _curves(outcome)
    ]
    if len(charts) > 2:
        page.small_charts(charts)
    else:
        for chart in charts:
            page.line_chart(chart)
    _where(page, outcome)
    _settings(page, outcome)
    return page.html()


def _told(measure: Measure, level: float) -> dict[str, Any]:
    differences = compare_blocks(measure.scores, level=level)
    over = "seeds"
    if differences is None and len(measure.items) > 1:
        over, differences = "items", compare_blocks(measure.items, level=level)
    arms = {}
    for arm, mean in measure.means().items():
        values = list(measure.scores[arm].values())
        arms[arm] = {
            "mean": mean,
            "reach": differences.reaches.get(arm, 0.0) if differences else 0.0,
            "by_seed": {str(seed): value for seed, value in measure.scores[arm].items()},
            "interval": spread_interval(values),
        }
    return {
        "key": measure.key,
        "label": measure.label,
        "is_higher_better": measure.is_higher_better,
        "is_share": measure.is_share,
        "over": over,
        "blocks": differences.blocks if differences else 0,
        "missing": differences.missing if differences else 0,
        "noise": differences.noise if differences else None,
        "unsteady": dict(differences.unsteady) if differences else {},
        "arms": arms,
        "contrasts": [
            {
                "first": c.first,
                "second": c.second,
                "difference": c.difference,
                "low": c.low,
                "high": c.high,
                "p": c.p,
                "is_found": c.is_found,
            }
            for c in (differences.contrasts if differences else ())
        ],
    }


def _shown_keys(outcome: Mapping[str, Any]) -> list[str]:
    """Return the measures of the overview: single tasks only where they are few."""
    keys = [m["key"] for m in outcome["measures"]]
    tasks = [k for k in keys if k.startswith(("probe:", "finetune:"))]
    return keys if len(tasks) <= 4 else [k for k in keys if k not in tasks]


def _deciding(outcome: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((m for m in outcome["measures"] if m["key"] == outcome["verdict"]["by"]), None)


def _cell(measure: Mapping[str, Any], arm: str) -> str:
    own = measure["arms"].get(arm)
    if own is None:
        return "-"
    is_share = measure["is_share"]
    shown = f"{own['mean']:.1%}" if is_share else f"{own['mean']:.3f}"
    if own["interval"] is None:
        return shown
    reach = (own["interval"][1] - own["interval"][0]) / 2
    return f"{shown} ± {reach:.1%}" if is_share else f"{shown} ± {reach:.3f}"


def _dots(outcome: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    best = set(outcome["verdict"]["best"])
    dots = [
        Dot(
            arm,
            own["mean"],
            own["mean"] - own["reach"] if own["reach"] else None,
            own["mean"] + own["reach"] if own["reach"] else None,
            list(own["by_seed"].values()),
            2 if arm in best else 0,
        )
        for arm, own in measure["arms"].items()
    ]
    better = "higher is better" if measure["is_higher_better"] else "lower is better"
    return dot_chart(dots, x_label=f"{measure['label']}, {better}", title=measure["label"])


def _frontier(
    outcome: Mapping[str, Any], measure: Mapping[str, Any], key: str, label: str, unit: float
) -> str:
    points = {}
    for arm, own in measure["arms"].items():
        runs = _counted(outcome, arm)
        points[arm] = (_mean(runs, key) / unit, own["mean"])
    joined = frontier(points, is_higher_better=measure["is_higher_better"])
    spots = [Spot(arm, x, y, 2 if arm in joined else 0) for arm, (x, y) in points.items()]
    return scatter(
        spots, x_label=label, y_label=measure["label"], title=f"quality over {label}", frontier=joined
    )


def _counted(outcome: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    """Return the results of an arm that were not left out; all of them where all were."""
    own = [r for r in outcome["results"] if r["arm"] == arm]
    return [r for r in own if f"{arm}/{r['seed']}" not in outcome["drifted"]] or own


def _is_equal(outcome: Mapping[str, Any], measure: Mapping[str, Any], key: str) -> bool:
    """Say whether all arms cost the same by this, within 2 %: then there is nothing to draw over."""
    spent = [_mean(_counted(outcome, arm), key) for arm in measure["arms"]]
    return max(spent) <= 1.02 * min(spent)


def _differences(page: Page, outcome: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Show which arms differ by each measure: pair by pair, or by letters where there are many arms."""
    tested = [m for m in outcome["measures"] if m["contrasts"]]
    is_many = len(outcome["arms"]) > _LISTED
    if is_many and tested:
        signs = [_letters(m) for m in tested]
        order = [*chosen["arms"], *(arm for arm in outcome["arms"] if arm not in chosen["arms"])]
        rows = [
            [
                arm,
                *(
                    f"{_cell(m, arm).split(' ±')[0]} {own.get(arm, '')}"
                    for m, own in zip(tested, signs, strict=True)
                ),
            ]
            for arm in order
        ]
        page.table(["arm", *(m["label"] for m in tested)], rows, align="l" + "r" * len(tested))
        page.text(
            "In one column, two arms that share a letter are not told apart, and two that share none differ"
            f" ({outcome['level']:.0%} for all pairs of a column together).",
            is_soft=True,
        )
    for measure in [chosen] if is_many and chosen["contrasts"] else tested:
        page.table(*_contrasts(measure, outcome), align="llrrr", caption=measure["label"])
    for measure in tested:
        if measure["unsteady"]:
            said = set_apart(measure["unsteady"], measure["noise"])
            page.text(f"{measure['label']}: {said}", is_soft=True)


def _letters(measure: Mapping[str, Any]) -> dict[str, str]:
    """Return the letters of the arms that were tested."""
    tested = {arm for c in measure["contrasts"] for arm in (c["first"], c["second"])}
    apart = [(c["first"], c["second"]) for c in measure["contrasts"] if c["is_found"]]
    return letters([arm for arm in measure["arms"] if arm in tested], apart)


def _contrasts(measure: Mapping[str, Any], outcome: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return what each arm gains over the ones below it; of many arms, what the best one gains over each."""
    order = list(measure["arms"])
    found = sorted(
        (_from_the_better(c, order) for c in measure["contrasts"]),
        key=lambda c: (order.index(c["first"]), order.index(c["second"])),
    )
    if len(order) > _LISTED:
        found = [c for c in found if c["first"] == order[0]]
    rows = [
        [
            f"{c['first']} - {c['second']}",
            "differ" if c["is_found"] else "not told apart",
            f"{c['difference']:+.4f}",
            f"{c['low']:+.4f} to {c['high']:+.4f}",
            "<0.0001" if c["p"] < 1e-4 else f"{c['p']:.4f}",
        ]
        for c in found
    ]
    basis = f"{measure['blocks']} {measure['over']}" if measure["blocks"] else "one seed"
    return [
        f"pair ({basis})",
        "",
        "difference",
        f"interval ({1 - outcome['level']:.0%}, all pairs at once)",
        "p",
    ], rows


def _from_the_better(contrast: Mapping[str, Any], order: Sequence[str]) -> Mapping[str, Any]:
    """Return a contrast with the better arm first."""
    if order.index(contrast["first"]) < order.index(contrast["second"]):
        return contrast
    turned = {"first": contrast["second"], "second": contrast["first"]}
    ends = {"low": -contrast["high"], "high": -contrast["low"], "difference": -contrast["difference"]}
    return {**contrast, **turned, **ends}


def _curves(outcome: Mapping[str, Any]) -> list[tuple[str, list[Series]]]:
    """Return the first seed's curves, one chart an objective."""
    groups: dict[str, list[Series]] = {}
    seed = outcome["seeds"][0]
    for result in outcome["results"]:
        if result["seed"] == seed and len(result["curve"]) > 1:
            points = [(float(x), float(y)) for x, y in result["curve"]]
            groups.setdefault(result["objective"], []).append(Series(result["arm"], points))
    return sorted(groups.items())


def _where(page: Page, outcome: Mapping[str, Any]) -> None:
    """Show in which kinds of pairs, and at which kinds of tokens, arms differ."""
    tables = [*_pairs_apart(outcome), *_slices_apart(outcome)]
    if not tables:
        return
    page.section("Where they differ")
    for header, rows, caption in tables:
        page.table(header, rows, align="l" + "r" * (len(header) - 1), caption=caption)


_Table = tuple[list[str], list[list[str]], str]


def _pairs_apart(outcome: Mapping[str, Any]) -> Iterator[_Table]:
    """Yield header, rows and caption of minimal pairs by phenomenon and by paradigm."""
    scored = _by_arm(outcome, "minimal_pairs")
    if len(scored) < 2:
        return
    for key, title in (("by_phenomenon", "by phenomenon"), ("by_paradigm", "by paradigm")):
        names = sorted({name for own in scored.values() for pairs in own for name in pairs[key]})
        table = {
            name: [statistics.fmean(p[key].get(name, float("nan")) for p in own) for own in scored.values()]
            for name in names
        }
        rows = [[name.replace("_", " "), *(f"{v:.0%}" for v in table[name])] for name in _widest_first(table)]
        yield ["", *scored], rows, f"minimal pairs right, {title}"


def _slices_apart(outcome: Mapping[str, Any]) -> Iterator[_Table]:
    """Yield header, rows and caption of losses by slices of the vocabulary, for each kind of likelihood."""
    kinds = {r["arm"]: str(r.get("kind")) for r in outcome["results"]}
    for kind in sorted(set(kinds.values())):
        scored = {arm: own for arm, own in _by_arm(outcome, "slices").items() if kinds[arm] == kind}
        if len(scored) < 2:
            continue
        first = next(iter(scored.values()))[0]
        for partition, parts in first.items():
            total = sum(part["targets"] for part in parts.values())
            # Rows of another length hide other tokens: a rare slice may have none in one arm.
            names = [
                name for name in parts if all(name in s[partition] for own in scored.values() for s in own)
            ]
            table = {
                name: [statistics.fmean(s[partition][name]["loss"] for s in own) for own in scored.values()]
                for name in names
            }
            rows = [
                [name, f"{parts[name]['targets'] / total:.0%}", *(f"{v:.3f}" for v in table[name])]
                for name in _widest_first(table)
            ]
            yield ["", "targets", *scored], rows, f"{kind}: loss at held-out tokens, nats, {partition}"


def _by_arm(outcome: Mapping[str, Any], key: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return what the results of each arm have under a key, arms without it left out."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in outcome["results"]:
        if result.get(key):
            found.setdefault(result["arm"], []).append(result[key])
    return found


def _widest_first(table: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the rows with the widest gaps first: that is where the choice of a strategy matters."""
    return sorted(table, key=lambda name: min(table[name]) - max(table[name]))


def _settings(page: Page, outcome: Mapping[str, Any]) -> None:
    """Show what each arm was, and on which machine."""
    page.section("What was compared")
    filled = {r["arm"]: r.get("filled_in") or {} for r in outcome["results"]}
    header = ["arm", "sets", "filled in by the length of the run"]
    rows = [
        [
            arm,
            ", ".join(f"{k} = {v}" for k, v in _flat(own)) or "the shared recipe",
            ", ".join(f"{k} = {v}" for k, v in filled.get(arm, {}).items()),
        ]
        for arm, own in outcome["arms"].items()
    ]
    columns = 3 if any(filled.values()) else 2
    page.table(header[:columns], [row[:columns] for row in rows])
    reasons = {
        (r["arm"], what, why) for r in outcome["results"] for what, why in (r.get("not_asked") or {}).items()
    }
    if reasons:
        page.table(["arm", "not asked", "why"], [list(row) for row in sorted(reasons)])
    page.table(
        [], [[key, str(value)] for key, value in _flat(outcome["recipe"])], caption="shared by all arms"
    )
    first = outcome["results"][0]
    speeds = [s for r in outcome["results"] for s in r["product_gflops"]]
    page.text(
        f"A product of matrices ran at {format_number(min(speeds))} to {format_number(max(speeds))} GFLOP/s before and after the"
        f" runs. {first['machine'].get('processor', '')} torch {first['machine'].get('torch', '')}".strip(),
        is_soft=True,
    )


def _flat(sections: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in sections.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((before + key, value))
    return found


def _mean(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(float(r[key]) for r in results) if results else float("nan")
