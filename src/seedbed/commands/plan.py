"""Say what a recipe will come to before it is trained: which preset, how many passes, which loss, with an interval.

Small probes of several sizes and lengths train to the end of their schedules; a curve is fitted, and what a run of the whole
budget ends with is forecast for each preset. Finished runs are held against their forecasts with --check.
docs/compare.md says what the curve is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.commands.console import Console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from seedbed.compare.config import CompareConfig
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
    from seedbed.compare.planning import check, make_plan
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
    results = _finished(config)
    plan = make_plan(results, speeds, options.minutes)
    for path in options.check or ():
        plan["checks"].append(check(plan, path))
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
    from seedbed.compare.planning import plateau_of, preset_of

    extra: dict[str, Any] = {}
    by_preset: dict[str, dict[float, bool]] = {}
    for (arm, _), result in _results(config).items():
        bigram = plateau_of(result)
        is_past = bigram is None or result["valid"]["loss"] < bigram
        lengths = by_preset.setdefault(preset_of(arm), {})
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


def _finished(config: CompareConfig) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what the probes came to.

    Raises:
        DataError: one failed.
    """
    from seedbed.errors import DataError

    results = _results(config)
    if failed := [arm for arm in config.arms if arm not in {name for name, _ in results}]:
        raise DataError(
            f"{len(failed)} of {len(config.arms)} probes could not be run ({failed[0]}); what they said stands above.",
            hint="give the same command again, or leave a size out with --presets",
        )
    return results


def _tell(options: argparse.Namespace, plan: dict[str, Any], console: Console) -> int:
    """Print and write the plan."""
    from seedbed.artifact import write_json, write_text
    from seedbed.compare.planning import check_rows, overview, plan_page

    header, rows = overview(plan)
    console.table(rows, header=header)
    if plan["checks"]:
        header, rows = check_rows(plan)
        console.table(rows, header=header)
    write_json(options.out / "plan.json", plan)
    write_text(options.out / "plan.html", plan_page(plan))
    console.result(plan, text="\n".join([*plan["advice"], f"page: {options.out / 'plan.html'}"]))
    return 0
