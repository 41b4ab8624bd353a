"""Turn finished probes into a plan: forecasts by preset, advice in words, finished runs held against their forecasts, a page.

A plan is a dict, as it is written to `plan.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedbed.artifact import read_json
from seedbed.compare.scaling import REUSE, Curve, Probe, are_enough, fit_curve
from seedbed.errors import DataError, IncompatibleError
from seedbed.page import Chart, Page, Series, format_number
from seedbed.progress import duration

__all__ = ["check", "check_rows", "make_plan", "overview", "plan_page", "plateau_of", "preset_of"]

_LENGTHS = (0.5, 1, 2, 4)
"""Times the budget: how long is long enough."""

_WIDE = 0.3  # nats; more than presets usually differ by


def preset_of(arm: str) -> str:
    """Return the preset a probe is of; its name is `preset-tokens`."""
    return arm.partition("-")[0]


def plateau_of(result: Mapping[str, Any]) -> float | None:
    """Return the loss above which a finished run may still be on the plateau of words and their neighbours; None: it has none.

    Every token of a causal model's text is a target, and its loss falls along a line from the first tenths of a million
    tokens on, far above the bigram, to bend there (docs/compare.md).
    """
    return None if result["kind"] == "causal" else _bigram(result)


def _bigram(result: Mapping[str, Any]) -> float | None:
    bigram = result["baselines"].get("bigram")
    return None if bigram is None else float(bigram)


def make_plan(
    results: Mapping[tuple[str, int], Mapping[str, Any]], speeds: Mapping[str, float], minutes: float
) -> dict[str, Any]:
    """Fit the curve and forecast every preset.

    Args:
        results: of the probes, by arm and seed, as `seedbed compare` writes them.
        speeds: tokens a second, by preset.
        minutes: the run may take.

    Raises:
        DataError: the probes say too little.
    """
    probes = [
        {
            "arm": arm,
            "seed": seed,
            "preset": preset_of(arm),
            "active": r["flops"] / max(1, r["tokens"]) / 6,
            "tokens": r["tokens"],
            "loss": r["valid"]["loss"],
            "bigram": _bigram(r),
            "unique": r["train_tokens"],
        }
        for (arm, seed), r in results.items()
    ]
    unique = float(probes[0]["unique"])
    kind = next(str(r["kind"]) for r in results.values())
    curves = _curves(probes, unique, kind)
    held_out = _largest_from_the_rest(probes, unique, kind)
    active = {p["preset"]: p["active"] for p in probes}

    def forecast(preset: str, minutes: float) -> dict[str, Any]:
        tokens = speeds[preset] * 60 * minutes
        found = curves[preset].forecast(active[preset], tokens)
        return {
            "tokens": round(tokens),
            "epochs": tokens / unique,
            "tokens_per_second": speeds[preset],
            "loss": found.loss,
            "low": found.low,
            "high": found.high,
            "active": active[preset],
        }

    presets = sorted(active, key=lambda preset: -speeds[preset])
    forecasts = {preset: forecast(preset, minutes) for preset in presets}
    by_length = []
    for times in _LENGTHS:
        told = {preset: forecast(preset, times * minutes) for preset in presets}
        best = min(told, key=lambda preset: told[preset]["loss"])
        by_length.append({"minutes": times * minutes, "times": times, "preset": best, **told[best]})
    return {
        "minutes": minutes,
        "unique_tokens": unique,
        "kind": kind,
        "probes": probes,
        "forecasts": forecasts,
        "by_length": by_length,
        "held_out": held_out,
        "curve": _drawn(curves, probes, forecasts),
        "advice": _advice(forecasts, minutes, held_out, by_length)
        + _said_of_the_bend(curves, forecasts)
        + _said_of_the_plateau(curves),
        "checks": [],
    }


def _as_probes(probes: Sequence[Mapping[str, Any]], kind: str) -> list[Probe]:
    """Return probes with their plateau, which a causal model has none of."""
    return [
        Probe(
            p["active"],
            p["tokens"],
            p["loss"],
            math.inf if kind == "causal" or p["bigram"] is None else p["bigram"],
        )
        for p in probes
    ]


def _curves(probes: Sequence[Mapping[str, Any]], unique: float, kind: str) -> dict[str, Curve]:
    """Return the curve of each preset: fitted to its own probes where enough of them are off the plateau, else to all probes.

    Tokens do not do the same for every size: over the same lengths a smaller model falls faster at first and bends sooner, and
    one slope for all of them made forecasts that were narrow and wrong (docs/log.md). Where a preset says too little by
    itself, one slope is the best there is.
    """
    is_causal = kind == "causal"
    told: dict[str, Any] = {
        "unique": unique,
        "reuse": REUSE["causal" if is_causal else "masked"],
        "bend": probes[0]["bigram"] if is_causal else None,
    }
    curves: dict[str, Curve] = {}
    shared: Curve | None = None
    for preset in dict.fromkeys(p["preset"] for p in probes):
        own = _as_probes([p for p in probes if p["preset"] == preset], kind)
        if are_enough([p for p in own if p.loss < p.bigram]):
            curves[preset] = fit_curve(own, **told)
        else:
            shared = shared or fit_curve(_as_probes(probes, kind), **told)
            curves[preset] = shared
    return curves


def _said_of_the_bend(curves: Mapping[str, Curve], forecasts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say where a forecast lies past a bend that too few probes have reached."""
    bends = {preset: bend for preset, curve in curves.items() if (bend := curve.bend) is not None}
    if not (guessed := [preset for preset, bend in bends.items() if forecasts[preset]["loss"] < bend]):
        return []
    return [
        f"The forecast for {' and '.join(guessed)} lies below {bends[guessed[0]]:.2f}, what a table of neighbouring tokens comes"
        " to, where a causal model's curve bends; too few probes are past it to show how sharply. The bend is what other runs"
        " showed, so the truth may lie outside the interval; a smaller --largest shows more of it."
    ]


def _said_of_the_plateau(curves: Mapping[str, Curve]) -> list[str]:
    used = list(dict.fromkeys(probe for curve in curves.values() for probe in curve.used))
    if on_it := [p for p in used if p.loss >= p.bigram]:
        return [
            f"{len(on_it)} of the {len(used)} probes it rests on did not get below the bigram, and too few did: runs that"
            " short follow no curve yet, and the truth may lie outside the interval. Give a smaller --largest, or more minutes."
        ]
    left_out = list(dict.fromkeys(probe for curve in curves.values() for probe in curve.left_out))
    if not left_out:
        return []
    lengths = ", ".join(f"{tokens / 1e6:.2f} M" for tokens in sorted({p.tokens for p in left_out}))
    return [
        f"Left out of the curve are the probes of {lengths} tokens: they did not get below the bigram, and a run that short"
        " follows no curve yet."
    ]


def _largest_from_the_rest(
    probes: Sequence[Mapping[str, Any]], unique: float, kind: str
) -> dict[str, Any] | None:
    """Forecast the longest probe from those half as long and shorter: the error there can be seen now."""
    longest = max(probes, key=lambda p: p["tokens"] * p["active"])
    rest = [p for p in probes if p["preset"] != longest["preset"] or p["tokens"] < longest["tokens"]]
    try:
        curve = _curves(rest, unique, kind)[longest["preset"]]
    except (DataError, KeyError):  # too few are left, or none of that preset
        return None
    found = curve.forecast(longest["active"], longest["tokens"])
    return {
        "arm": longest["arm"],
        "loss": longest["loss"],
        "forecast": found.loss,
        "low": found.low,
        "high": found.high,
        "error": found.loss - longest["loss"],
    }


def _drawn(
    curves: Mapping[str, Curve], probes: Sequence[Mapping[str, Any]], forecasts: Mapping[str, Any]
) -> dict[str, list[list[float]]]:
    """Return points of each preset's curve: tokens, median, low, high."""
    lines = {}
    for preset, told in forecasts.items():
        first = min(p["tokens"] for p in probes if p["preset"] == preset)
        points = []
        for share in range(25):
            tokens = first * (told["tokens"] / first) ** (share / 24)
            found = curves[preset].forecast(told["active"], tokens)
            points.append([tokens, found.loss, found.low, found.high])
        lines[preset] = points
    return lines


def _advice(
    forecasts: Mapping[str, Mapping[str, Any]],
    minutes: float,
    held_out: Mapping[str, Any] | None,
    by_length: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Put the forecasts into words."""
    order = sorted(forecasts, key=lambda p: forecasts[p]["loss"])
    best = forecasts[order[0]]
    said = [
        f"In {duration(60 * minutes)} {order[0]} reads {best['tokens'] / 1e6:.1f} M tokens, {best['epochs']:.1f} passes over"
        f" the text, and ends near {best['loss']:.2f} (90 %: {best['low']:.2f} to {best['high']:.2f})."
    ]
    close = [p for p in order[1:] if forecasts[p]["loss"] < best["high"]]
    if close:
        smaller = min([order[0], *close], key=lambda p: forecasts[p]["active"])
        said.append(
            f"{', '.join(close)} may do as well; {smaller} is the smallest of them, and the cheapest to use afterwards."
        )
    others = [
        f"{told['loss']:.2f} in {duration(60 * told['minutes'])} ({told['preset']}, {told['epochs']:.1f} passes)"
        for told in by_length
        if told["times"] != 1
    ]
    said.append(f"By the same curve, {', '.join(others[:-1])} and {others[-1]}.")
    if best["high"] - best["low"] > _WIDE:
        said.append(
            "For a narrower interval, probe each length under several seeds (--seeds 3), or longer (a smaller --largest)."
        )
    if best["epochs"] > 4:
        said.append(
            f"{best['epochs']:.0f} passes are many (the run will be regularised more for that): trust the forecast less"
            " than its interval says, for no probe has read the text so often."
        )
    if held_out is not None:
        inside = held_out["low"] <= held_out["loss"] <= held_out["high"]
        said.append(
            f"Tried on what is known: the largest probe was forecast at {held_out['forecast']:.3f} from the smaller ones and came"
            f" to {held_out['loss']:.3f}, {'inside' if inside else 'OUTSIDE'} its interval."
        )
    return said


def check(plan: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return forecast and outcome of a finished run.

    Raises:
        DataError: the folder is no finished run.
        IncompatibleError: no probe is of its preset.
    """
    try:
        summary = read_json(path / "summary.json")
        resolved = json.loads((path / "pretrain" / "resolved.json").read_text(encoding="utf-8"))["resolved"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no finished run.", hint="name the folder of a run that ended") from error
    preset = str(resolved["model"]["preset"])
    if preset not in plan["forecasts"]:
        raise IncompatibleError(
            f"{path} is of preset {preset}, which has no probes here.", hint=f"--presets {preset}"
        )
    curve = _curves(plan["probes"], plan["unique_tokens"], plan["kind"])[preset]
    found = curve.forecast(plan["forecasts"][preset]["active"], float(summary["tokens"]))
    largest = max(p["tokens"] for p in plan["probes"] if p["preset"] == preset)
    return {
        "run": str(path),
        "preset": preset,
        "tokens": summary["tokens"],
        "times_the_largest_probe": summary["tokens"] / largest,
        "loss": summary["valid"]["loss"],
        "forecast": found.loss,
        "low": found.low,
        "high": found.high,
        "error": found.loss - summary["valid"]["loss"],
        "is_inside": found.low <= summary["valid"]["loss"] <= found.high,
    }


def overview(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the forecasts, the best preset first."""
    rows = [
        [
            preset,
            f"{told['tokens'] / 1e6:.1f} M",
            f"{told['epochs']:.1f}",
            f"{told['loss']:.3f}",
            f"{told['low']:.3f} to {told['high']:.3f}",
        ]
        for preset, told in sorted(plan["forecasts"].items(), key=lambda item: item[1]["loss"])
    ]
    return ["preset", "tokens", "passes", "forecast", "90 %"], rows


def length_rows(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return what other lengths would come to: the best preset of each."""
    rows = [
        [
            duration(60 * told["minutes"]),
            told["preset"],
            f"{told['tokens'] / 1e6:.1f} M",
            f"{told['epochs']:.1f}",
            f"{told['loss']:.3f}",
            f"{told['low']:.3f} to {told['high']:.3f}",
        ]
        for told in plan["by_length"]
    ]
    return ["time", "best preset", "tokens", "passes", "forecast", "90 %"], rows


def check_rows(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of forecasts and outcomes."""
    rows = [
        [
            Path(c["run"]).name,  # a terminal has no room for folders
            f"{c['times_the_largest_probe']:.1f}",
            f"{c['forecast']:.3f} ({c['low']:.3f} to {c['high']:.3f})",
            f"{c['loss']:.3f}",
            f"{c['error']:+.3f}, {'inside' if c['is_inside'] else 'outside'}",
        ]
        for c in plan["checks"]
    ]
    return ["run", "times the largest probe", "forecast", "outcome", "error"], rows


def plan_page(plan: Mapping[str, Any]) -> str:
    """Return the page: advice, curves with their probes, forecast and outcome, all probes."""
    page = Page(f"Plan for {duration(60 * plan['minutes'])}", lead="Forecast from small probes.")
    page.section("Advice")
    page.text(*plan["advice"])
    header, rows = overview(plan)
    page.table(header, rows, align="lrrrr")
    page.section("How long")
    page.table(*length_rows(plan), align="llrrrr")
    page.section("Curves")
    series = []
    for color, (preset, points) in enumerate(plan["curve"].items()):
        series.append(Series(f"{preset}, forecast", [(x, y) for x, y, _, _ in points], color=color))
        for name, place in (("low", 2), ("high", 3)):
            series.append(
                Series(f"{preset}, {name}", [(p[0], p[place]) for p in points], is_faint=True, color=color)
            )
        probed = sorted((p["tokens"], p["loss"]) for p in plan["probes"] if p["preset"] == preset)
        series.append(Series(f"{preset}, probes", probed, has_markers=True, color=color))
    page.line_chart(
        Chart("Loss at the end of a run", "tokens read", "validation loss (nats)", series, is_log_x=True)
    )
    if plan["checks"]:
        page.section("Forecast and outcome")
        page.table(*check_rows(plan), align="lrrrr")
    page.section("Probes")
    probes = [
        [
            p["preset"],
            format_number(p["tokens"]),
            str(p["seed"]),
            f"{p['loss']:.3f}",
            "" if p["bigram"] is None else f"{p['bigram']:.3f}",
        ]
        for p in sorted(plan["probes"], key=lambda p: (p["active"], p["tokens"], p["seed"]))
    ]
    page.table(["preset", "tokens", "seed", "loss", "bigram"], probes, align="lrrrr")
    return page.html()
