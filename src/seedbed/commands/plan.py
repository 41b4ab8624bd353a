"""Say what a recipe will come to before it is trained: which preset, how many passes, which loss, with an interval.

Small probes of several sizes and lengths train to the end of their schedules; a curve is fitted, and what a run of the whole
budget ends with is forecast for each preset. Finished runs are held against their forecasts with --check.
docs/compare.md says what the curve is.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.commands.console import Console, duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from seedbed.compare.config import CompareConfig
    from seedbed.compare.scaling import Curve, Probe
    from seedbed.recipe import Recipe

EXAMPLES = """examples:
  seedbed plan recipe.yaml --minutes 60
  seedbed plan recipe.yaml --minutes 480 --presets mini small medium --largest 32
  seedbed plan recipe.yaml --minutes 60 --check runs/wiki-en          forecast and outcome of a finished run"""

_LENGTHS = 4
"""Probes of a preset: the largest, and halves of it. Where fewer of them got below the bigram, the roots between are run too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from seedbed.commands.console import add_recipe_arguments

    add_recipe_arguments(parser)
    parser.add_argument("--minutes", type=float, required=True, metavar="M", help="what the run may take")
    parser.add_argument(
        "--presets",
        nargs="+",
        metavar="NAME",
        help="sizes to weigh (default: the recipe's, the next smaller and the next larger)",
    )
    parser.add_argument(
        "--largest",
        type=float,
        default=8.0,
        metavar="K",
        help="the largest probe of a preset is a K-th of the run (default 8; smaller is surer and dearer)",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each probe (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/plan"), help="folder of probes and plan")
    parser.add_argument("--check", nargs="+", type=Path, metavar="RUN", help="finished runs of this recipe")


def run(options: argparse.Namespace) -> int:
    """Probe, fit, forecast, advise; check what is finished."""
    from seedbed.commands.console import read_recipe
    from seedbed.errors import ConfigError
    from seedbed.models.presets import PRESETS

    console = Console(as_json=options.json)
    recipe = read_recipe(options)
    if options.minutes <= 0 or options.largest <= 1:
        raise ConfigError(
            f"--minutes {options.minutes:g} and --largest {options.largest:g} leave no room for probes.",
            hint="minutes above 0, largest above 1",
        )
    names = list(PRESETS)
    if unknown := sorted(set(options.presets or ()) - set(names)):
        raise ConfigError(f"there is no preset {unknown[0]!r}.", hint=f"presets: {', '.join(names)}")
    place = names.index(recipe.model.preset)
    presets = options.presets or names[max(0, place - 1) : place + 2]
    speeds = _speeds(options, recipe, presets, console)
    config = _probes(options, recipe, presets, speeds)
    code = _train(options, config, console)
    if not code and (denser := _denser(options, recipe, config)) is not config:
        console.note("some probes did not get below the bigram; more of the longer ones follow")
        config = denser
        code = _train(options, config, console)
    if code:
        return code
    plan = _planned(options, recipe, config, speeds)
    for path in options.check or ():
        plan["checks"].append(_checked(plan, path))
    return _tell(options, plan, console)


def _probes(
    options: argparse.Namespace, recipe: Recipe, presets: Sequence[str], speeds: Mapping[str, float]
) -> CompareConfig:
    """Return the probes as arms of a comparison at which nothing is equal."""
    arms: dict[str, Any] = {}
    for preset in presets:
        most = speeds[preset] * 60 * options.minutes / options.largest
        for halves in range(_LENGTHS):
            arms |= _probe(preset, most / 2**halves)
    return _comparison(options, recipe, arms, options.out, options.seeds)


def _probe(preset: str, tokens: float) -> dict[str, Any]:
    whole = max(1, round(tokens))
    return {f"{preset}-{whole}": {"model": {"preset": preset}, "training": {"budget_tokens": whole}}}


def _denser(options: argparse.Namespace, recipe: Recipe, config: CompareConfig) -> CompareConfig:
    """Return the probes with those between the lengths that got below the bigram; the same ones where enough of them did.

    On a text whose bigram is hard to beat, halves of the largest probe are soon too short to say anything of the curve.
    """
    extra: dict[str, Any] = {}
    by_preset: dict[str, dict[float, bool]] = {}
    for (arm, _), result in _results(config).items():
        bigram = result["baselines"].get("bigram")
        is_past = bigram is None or result["valid"]["loss"] < bigram
        lengths = by_preset.setdefault(arm.partition("-")[0], {})
        asked = float(config.arms[arm]["training"]["budget_tokens"])
        lengths[asked] = is_past and lengths.get(asked, True)
    for preset, lengths in by_preset.items():
        failed = max((length for length, is_past in lengths.items() if not is_past), default=0.0)
        if not failed:
            continue
        for halves in range(_LENGTHS - 1):
            between = max(lengths) / 2 ** (halves + 0.5)
            if between > failed:
                extra |= _probe(preset, between)
    if not extra:
        return config
    return _comparison(options, recipe, {**config.arms, **extra}, options.out, options.seeds)


def _comparison(
    options: argparse.Namespace, recipe: Recipe, arms: Mapping[str, Any], out: Path, seeds: int
) -> CompareConfig:
    from seedbed.compare.config import CompareConfig
    from seedbed.config import validate

    shared = recipe.model_dump(mode="json", exclude_unset=True, exclude={"run"})
    training = dict(shared.get("training", {}))
    for name in ("budget_minutes", "budget_tokens", "budget_steps", "max_minutes", "seed"):
        training.pop(name, None)
    data = {
        "out": str(out),
        "recipe": {**shared, "training": training},
        "arms": dict(arms),
        "seeds": seeds,
        "cost": {"own": True},
        "judge": {"minimal_pairs": [], "pll_tokens": 0, "text_mib": 0.05},
    }
    return validate(CompareConfig, data, place="the probes")


def _speeds(
    options: argparse.Namespace, recipe: Recipe, presets: Sequence[str], console: Console
) -> dict[str, float]:
    """Return the tokens a second of each preset, from the steps of a short run: kept, so that a plan goes on with its probes."""
    from seedbed.artifact import write_json
    from seedbed.errors import DataError

    path = options.out / "speeds.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = recipe.training.rows_per_step(recipe.data.row_length)
    missing = [preset for preset in presets if preset not in known]
    if not missing:
        return known
    arms = {
        f"speed-{preset}": {
            "model": {"preset": preset},
            "training": {"budget_steps": max(20, 40_000 // (rows * recipe.data.row_length))},
        }
        for preset in missing
    }
    config = _comparison(options, recipe, arms, options.out, 1)
    if stopped := _train(options, config, console):
        raise SystemExit(stopped)
    for (arm, _), result in _results(config).items():
        per_step = result["tokens"] / result["steps"]
        known[arm.removeprefix("speed-")] = per_step / float(result["step_seconds"])
    if failed := [preset for preset in missing if preset not in known]:
        raise DataError(
            f"the first probes of {', '.join(failed)} could not be run; what they said stands above.",
            hint="leave them out with --presets, or mend the recipe",
        )
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(path, known)
    return known


def _train(options: argparse.Namespace, config: CompareConfig, console: Console) -> int:
    """Train what is not trained yet, as `seedbed compare` does it."""
    from seedbed.artifact import write_text
    from seedbed.commands.compare import work
    from seedbed.config import commented_yaml

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "probes.yaml"
    write_text(path, commented_yaml(config))
    return work(path, [], config, console)


def _results(config: CompareConfig) -> dict[tuple[str, int], dict[str, Any]]:
    from seedbed.commands.compare import results_of

    return results_of(config)


def _planned(
    options: argparse.Namespace, recipe: Recipe, config: CompareConfig, speeds: Mapping[str, float]
) -> dict[str, Any]:
    """Fit the curve and forecast every preset.

    Raises:
        DataError: a probe failed, or the probes say too little.
    """
    from seedbed.compare.scaling import REUSE, fit_curve
    from seedbed.errors import DataError

    results = _results(config)
    probes = [
        {
            "arm": arm,
            "seed": seed,
            "preset": arm.partition("-")[0],
            "active": r["flops"] / max(1, r["tokens"]) / 6,
            "tokens": r["tokens"],
            "loss": r["valid"]["loss"],
            "bigram": r["baselines"].get("bigram"),
            "unique": r["train_tokens"],
        }
        for (arm, seed), r in results.items()
    ]
    if failed := [arm for arm in config.arms if arm not in {p["arm"] for p in probes}]:
        raise DataError(
            f"{len(failed)} of {len(config.arms)} probes could not be run ({failed[0]}); what they said stands above.",
            hint="give the same command again, or leave a size out with --presets",
        )
    unique = float(probes[0]["unique"])
    kind = next(str(r["kind"]) for r in results.values())
    reuse = REUSE["causal" if kind == "causal" else "masked"]
    curve = fit_curve(_as_probes(probes), unique=unique, reuse=reuse)
    held_out = _largest_from_the_rest(probes, unique, reuse)
    forecasts = {}
    for preset in sorted({p["preset"] for p in probes}, key=lambda x: -speeds[x]):
        active = next(p["active"] for p in probes if p["preset"] == preset)
        tokens = speeds[preset] * 60 * options.minutes
        found = curve.forecast(active, tokens)
        forecasts[preset] = {
            "tokens": round(tokens),
            "epochs": tokens / unique,
            "tokens_per_second": speeds[preset],
            "loss": found.loss,
            "low": found.low,
            "high": found.high,
            "active": active,
        }
    return {
        "minutes": options.minutes,
        "unique_tokens": unique,
        "reuse": reuse,
        "probes": probes,
        "forecasts": forecasts,
        "held_out": held_out,
        "curve": _drawn(curve, probes, forecasts),
        "advice": _advice(forecasts, options.minutes, held_out) + _said_of_the_plateau(curve),
        "checks": [],
    }


def _as_probes(probes: Sequence[Mapping[str, Any]]) -> list[Probe]:
    from seedbed.compare.scaling import Probe

    return [
        Probe(p["active"], p["tokens"], p["loss"], math.inf if p["bigram"] is None else p["bigram"])
        for p in probes
    ]


def _said_of_the_plateau(curve: Curve) -> list[str]:
    if on_it := [p for p in curve.used if p.loss >= p.bigram]:
        return [
            f"{len(on_it)} of the {len(curve.used)} probes did not get below the bigram, and too few did: runs that short follow"
            " no curve yet, and the truth may well lie outside the interval. Give a smaller --largest, or more minutes."
        ]
    if not curve.left_out:
        return []
    lengths = ", ".join(f"{p.tokens / 1e6:.2f} M" for p in curve.left_out)
    return [
        f"Left out of the curve are the probes of {lengths} tokens: they did not get below the bigram, and a run that short"
        " follows no curve yet."
    ]


def _largest_from_the_rest(
    probes: Sequence[Mapping[str, Any]], unique: float, reuse: float
) -> dict[str, Any] | None:
    """Forecast the longest probe from those half as long and shorter: the error there can be seen now."""
    from seedbed.compare.scaling import fit_curve
    from seedbed.errors import DataError

    longest = max(probes, key=lambda p: p["tokens"] * p["active"])
    rest = [p for p in probes if p["preset"] != longest["preset"] or p["tokens"] < longest["tokens"]]
    try:
        curve = fit_curve(_as_probes(rest), unique=unique, reuse=reuse)
    except DataError:
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
    curve: Curve, probes: Sequence[Mapping[str, Any]], forecasts: Mapping[str, Any]
) -> dict[str, list[list[float]]]:
    """Return points of each preset's curve: tokens, median, low, high."""
    lines = {}
    for preset, told in forecasts.items():
        first = min(p["tokens"] for p in probes if p["preset"] == preset)
        points = []
        for share in range(25):
            tokens = first * (told["tokens"] / first) ** (share / 24)
            found = curve.forecast(told["active"], tokens)
            points.append([tokens, found.loss, found.low, found.high])
        lines[preset] = points
    return lines


def _advice(
    forecasts: Mapping[str, Mapping[str, Any]], minutes: float, held_out: Mapping[str, Any] | None
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
    if best["epochs"] > 4:
        said.append(
            f"{best['epochs']:.0f} passes are many (the run will decay its weights more for that): trust the forecast less"
            " than its interval says, for no probe has read the text so often."
        )
    if held_out is not None:
        inside = held_out["low"] <= held_out["loss"] <= held_out["high"]
        said.append(
            f"Tried on what is known: the largest probe was forecast at {held_out['forecast']:.3f} from the smaller ones and came"
            f" to {held_out['loss']:.3f}, {'inside' if inside else 'OUTSIDE'} its interval."
        )
    return said


def _checked(plan: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return forecast and outcome of a finished run."""
    from seedbed.artifact import read_json
    from seedbed.compare.scaling import fit_curve
    from seedbed.errors import DataError, IncompatibleError

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
    curve = fit_curve(_as_probes(plan["probes"]), unique=plan["unique_tokens"], reuse=plan["reuse"])
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


def _tell(options: argparse.Namespace, plan: dict[str, Any], console: Console) -> int:
    """Print and write the plan."""
    from seedbed.artifact import write_json, write_text
    from seedbed.page import Chart, Page, Series

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
    header = ["preset", "tokens", "passes", "forecast", "90 %"]
    console.table(rows, header=header)
    checks = [
        [
            c["run"],
            f"{c['times_the_largest_probe']:.1f}",
            f"{c['forecast']:.3f} ({c['low']:.3f} to {c['high']:.3f})",
            f"{c['loss']:.3f}",
            f"{c['error']:+.3f}, {'inside' if c['is_inside'] else 'outside'}",
        ]
        for c in plan["checks"]
    ]
    checks_header = ["run", "times the largest probe", "forecast", "outcome", "error"]
    if checks:
        console.table(checks, header=checks_header)
    page = Page(f"Plan for {duration(60 * plan['minutes'])}", lead="Forecast from small probes.")
    page.section("Advice")
    page.text(*plan["advice"])
    page.table(header, rows, align="lrrrr")
    page.section("Curves")
    series = []
    for number, (preset, points) in enumerate(plan["curve"].items()):
        color = number % 6
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
    if checks:
        page.section("Forecast and outcome")
        page.table(checks_header, checks, align="lrrrr")
    write_json(options.out / "plan.json", plan)
    write_text(options.out / "plan.html", page.html())
    console.result(plan, text="\n".join([*plan["advice"], f"page: {options.out / 'plan.html'}"]))
    return 0
