"""Search over keys of a recipe for the lowest validation loss at equal cost, against what the recipe itself gets.

Trial 0 is the recipe as it stands; the others are drawn by Optuna's TPE. Runs that fall behind are ended early. Started again,
the command goes on; a killed run is resumed with its values. The page shows every trial, which keys mattered, and the gain
over trial 0. A gain found among many trials by one seed flatters itself: settle it with `seedbed compare`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.commands.console import Console

if TYPE_CHECKING:
    from seedbed.compare.config import CompareConfig
    from seedbed.compare.space import SearchConfig
    from seedbed.config import Config

EXAMPLES = """examples:
  seedbed search search.yaml
  seedbed search search.yaml trials=60                 twice as many, the first ones kept
  seedbed search --print                               every key with its meaning

A search file names the recipe and the keys:
  recipe:
    corpus: {inputs: [my-text.txt.gz]}
  space:
    optim.learning_rate: {low: 5e-4, high: 8e-3, log: true}
    objective.mask_rate: {low: 0.1, high: 0.5}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, nargs="?", help="the search (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override any key of the file")
    parser.add_argument("--print", action="store_true", help="print the keys of a search explained")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def config_kind() -> type[Config]:
    """Return what the overrides of this verb are keys of."""
    from seedbed.compare.space import SearchConfig

    return SearchConfig


def run(options: argparse.Namespace) -> int:
    """Run trials until there are as many as asked for."""
    from seedbed.commands.arm import recipe_of
    from seedbed.commands.signals import collect_signals
    from seedbed.compare.board import taking_turns
    from seedbed.compare.space import SearchConfig
    from seedbed.config import commented_yaml, load_config
    from seedbed.errors import ConfigError

    console = Console(as_json=options.json)
    if options.print:
        console.result(SearchConfig().model_dump(mode="json"), text=commented_yaml(SearchConfig()))
        return 0
    config = load_config(SearchConfig, options.file, options.overrides)
    if not config.space:
        raise ConfigError(
            "there is nothing to search: space names no key.",
            hint="space: {optim.learning_rate: {low: 5e-4, high: 8e-3, log: true}}",
        )
    default = _own_values(config)
    recipe_of(_comparison(config, "check", default), "check", config.seed)  # refuses what is wrong at once
    study = _study(config)
    with taking_turns(study._storage):
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(default, user_attrs={"is_default": True})
    with collect_signals() as received:
        while not received:
            with taking_turns(study._storage):
                _reclaim(study)
                trial = study.ask() if _count(study) < config.trials else None
            if trial is None:
                break
            _trial(config, study, trial, console, received)
            _write_page(config, study)
    if received:
        console.note("stopped; finished trials are kept.\nto go on, give the same command")
        return 128 + received[0]
    return _tell(config, study, console)


def _study(config: SearchConfig) -> Any:
    from seedbed.compare.board import open_storage, optuna

    library = optuna(needed_for="a search")
    storage = open_storage(config.storage or Path(config.out).expanduser() / "search.db")
    pruner = (
        library.pruners.MedianPruner(
            n_startup_trials=config.spared_trials, n_warmup_steps=round(100 * config.spared_share)
        )
        if config.pruner == "median"
        else library.pruners.NopPruner()
    )
    study = library.create_study(
        study_name=config.name, storage=storage, load_if_exists=True, direction="minimize", pruner=pruner
    )
    # Keyed by what is there: a search that was stopped may draw other values than one that was not.
    study.sampler = library.samplers.TPESampler(
        seed=config.seed + len(study.get_trials(deepcopy=False)), multivariate=True, n_startup_trials=8
    )
    return study


def _own_values(config: SearchConfig) -> dict[str, Any]:
    """Return what the recipe itself says of the keys searched.

    Raises:
        ConfigError: a key that is no single value of the recipe, or a value outside the space.
    """
    from seedbed.commands.settling import settle
    from seedbed.config import validate
    from seedbed.errors import ConfigError
    from seedbed.recipe import Recipe

    recipe: Any = validate(Recipe, config.recipe, place="recipe")
    if config.cost.tokens is not None or recipe.training.batch_tokens is not None:
        recipe = settle(recipe, tokens=config.cost.tokens, text_tokens=None)
    found = {}
    for key, values in config.space.items():
        node: Any = recipe
        for part in key.split("."):
            if part not in getattr(type(node), "model_fields", {}):
                raise ConfigError(f"space: the recipe has no key {key}.", hint="seedbed config lists them")
            node = getattr(node, part)
        if values.choices:
            is_inside = node in values.choices
        else:
            is_inside = isinstance(node, int | float) and float(values.low or 0.0) <= node <= float(
                values.high or 0.0
            )
        if not is_inside:
            raise ConfigError(
                f"space: the recipe's own {key} ({node}) is not among the values searched.",
                hint="widen the space, or set the key in the recipe: trial 0 is what all others are held against",
            )
        found[key] = node
    return found


def _trial(config: SearchConfig, study: Any, trial: Any, console: Console, received: list[int]) -> None:
    """Draw values, train with them, report on the way, end early what falls behind."""
    from seedbed.artifact import write_text
    from seedbed.commands.arm import arm_folder
    from seedbed.commands.compare import in_process
    from seedbed.compare.board import alive, optuna
    from seedbed.config import commented_yaml

    states = optuna(needed_for="a search").trial.TrialState
    values = {key: _suggest(trial, key, space) for key, space in config.space.items()}
    name = f"trial-{_name(values)}"
    own = _comparison(config, name, values)
    folder = arm_folder(own, name, config.seed)
    path = Path(config.out).expanduser() / "trials" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, commented_yaml(own))
    console.heading(f"trial {trial.number} of {config.trials}: {_shown(values)}")
    is_behind = False
    told: set[int] = set()

    def watch() -> bool:
        """Say whether the run should end."""
        nonlocal is_behind
        for share, loss in _validations(folder):
            if share not in told:
                told.add(share)
                trial.report(loss, share)
        is_over = 100 in told  # what is left is to judge it
        is_behind = is_behind or (not is_over and trial.should_prune())
        return is_behind

    with alive(study._storage, trial._trial_id):
        code, errors = in_process([str(path)], name, config.seed, received, ends=watch)
    if code == 0:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        trial.set_user_attr(
            "result", json.dumps({k: result[k] for k in ("tokens", "train_seconds", "parameters")})
        )
        study.tell(trial, float(result["valid"]["loss"]))
    elif is_behind and not received:
        study.tell(trial, state=states.PRUNED)
        console.note(f"trial {trial.number} fell behind and was ended")
    elif received or code in (130, 143):
        study.tell(trial, state=states.FAIL)
        study.enqueue_trial(values, user_attrs={"is_default": trial.user_attrs.get("is_default", False)})
    else:
        trial.set_user_attr("reason", errors or f"exit code {code}")
        study.tell(trial, state=states.FAIL)
        console.note(f"trial {trial.number} failed: {errors}")


def _suggest(trial: Any, key: str, space: Any) -> Any:
    if space.choices:
        return trial.suggest_categorical(key, space.choices)
    if space.integer:
        return trial.suggest_int(key, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(key, space.low, space.high, log=space.log)


def _comparison(config: SearchConfig, arm: str, values: Mapping[str, Any]) -> CompareConfig:
    """Return the run of some values as a comparison of one arm."""
    from seedbed.compare.config import CompareConfig
    from seedbed.config import validate

    return validate(
        CompareConfig,
        {
            "out": config.out,
            "recipe": config.recipe,
            "arms": {arm: dict(values)},
            "seeds": [config.seed],
            "cost": config.cost.model_dump(mode="json", exclude_defaults=True),
            "judge": {"minimal_pairs": [], "pll_tokens": 0, "text_mib": 0.05},
        },
        place="search",
    )


def _name(values: Mapping[str, Any]) -> str:
    from seedbed.artifact import digest_of

    return digest_of(dict(values))[:10]


def _validations(folder: Path) -> list[tuple[int, float]]:
    """Return the validations of a run so far: percent of it done, loss."""
    try:
        steps = json.loads((folder / "pretrain" / "plan.json").read_text(encoding="utf-8"))["num_windows"]
        lines = (folder / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError):  # not begun yet
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # being written
            continue
        if record.get("kind") == "validation" and record["window"] > 0:
            found.append((round(100 * record["window"] / steps), float(record["loss"])))
    return found


def _reclaim(study: Any) -> None:
    """Give the values of a trial whose worker is gone to the next one."""
    from seedbed.compare.board import is_gone, optuna

    states = optuna(needed_for="a search").trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        if is_gone(trial.user_attrs, started):
            study._storage.set_trial_state_values(trial._trial_id, states.FAIL)
            if trial.params:
                is_default = bool(trial.user_attrs.get("is_default", False))
                study.enqueue_trial(trial.params, user_attrs={"is_default": is_default})


def _count(study: Any) -> int:
    """Return the trials that count: complete, ended early, failed by themselves, or running elsewhere."""
    from seedbed.compare.board import optuna

    states = optuna(needed_for="a search").trial.TrialState
    trials = study.get_trials(deepcopy=False)
    return sum(
        t.state in (states.COMPLETE, states.PRUNED, states.RUNNING) or "reason" in t.user_attrs
        for t in trials
    )


def _outcome(config: SearchConfig, study: Any) -> dict[str, Any]:
    """Return the trials, the best, the default's, and which keys mattered, as JSON values."""
    from seedbed.compare.board import optuna

    library = optuna(needed_for="a search")
    complete = library.trial.TrialState.COMPLETE
    trials = [
        {
            "number": t.number,
            "values": t.params,
            "state": t.state.name.lower(),
            "loss": t.value if t.state == complete else None,
            "is_default": bool(t.user_attrs.get("is_default", False)),
            "reason": t.user_attrs.get("reason"),
        }
        for t in study.get_trials(deepcopy=False)
        if t.params
    ]
    done = [t for t in trials if t["loss"] is not None]
    best = min(done, key=lambda t: t["loss"], default=None)
    default = next((t for t in done if t["is_default"]), None)
    importance: dict[str, float] = {}
    if len(done) >= 4 and len({t["loss"] for t in done}) > 1:
        evaluator = library.importance.PedAnovaImportanceEvaluator()
        importance = dict(library.importance.get_param_importances(study, evaluator=evaluator))
    return {
        "trials": trials,
        "best": best,
        "default": default,
        "gain": default["loss"] - best["loss"] if best and default else None,
        "importance": importance,
        "cost": config.cost.model_dump(mode="json"),
    }


def _write_page(config: SearchConfig, study: Any) -> dict[str, Any]:
    from seedbed.artifact import write_json, write_text
    from seedbed.page import Chart, Dot, Page, Reference, Series, dot_chart

    told = _outcome(config, study)
    page = Page("Search", lead=f"{len(told['trials'])} trials over {', '.join(config.space)}")
    page.section("What was found")
    page.text(*_sentences(told))
    done = [t for t in told["trials"] if t["loss"] is not None]
    if done:
        best: list[tuple[float, float]] = []
        for t in done:
            best.append((float(t["number"]), min(t["loss"], best[-1][1]) if best else t["loss"]))
        series = [
            Series(
                "trials", [(float(t["number"]), t["loss"]) for t in done], has_markers=True, is_faint=True
            ),
            Series("best so far", best),
        ]
        references = [Reference("default", told["default"]["loss"])] if told["default"] else []
        page.line_chart(Chart("Validation loss by trial", "trial", "nats", series, references))
    if told["importance"]:
        page.section("Which keys mattered")
        dots = [Dot(key, share) for key, share in told["importance"].items()]
        page.figure(
            "share of the differences", dot_chart(dots, x_label="importance (PED-ANOVA)", title="importance")
        )
    page.section("Trials")
    rows = [
        [
            str(t["number"]) + (" (default)" if t["is_default"] else ""),
            _shown(t["values"]),
            "-" if t["loss"] is None else f"{t['loss']:.4f}",
            t["reason"] or {"complete": "", "pruned": "ended early"}.get(t["state"], t["state"]),
        ]
        for t in sorted(told["trials"], key=lambda t: (t["loss"] is None, t["loss"] or 0.0))
    ]
    page.table(["trial", "values", "loss", ""], rows, align="llrl")
    out = Path(config.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "search.json", told)
    write_text(out / "search.html", page.html())
    return told


def _sentences(told: Mapping[str, Any]) -> list[str]:
    best, default = told["best"], told["default"]
    if best is None:
        return ["No trial is finished."]
    said = [f"Best: {_shown(best['values'])}, {best['loss']:.4f} nats."]
    if default is not None:
        said.append(
            f"The recipe as it stood came to {default['loss']:.4f}: a gain of {told['gain']:.4f}, by one seed and the best of"
            f" {len([t for t in told['trials'] if t['loss'] is not None])}. Settle it with seedbed compare."
        )
    return said


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )


def _tell(config: SearchConfig, study: Any, console: Console) -> int:
    told = _write_page(config, study)
    out = Path(config.out).expanduser()
    console.result(told, text="\n".join([*_sentences(told), f"page: {out / 'search.html'}"]))
    return 0
