"""Teach a pretrained model a task of labelled texts, and say how much better it is than the plainest answer.

The task is a known one by name, with the folder its files lie in, or any TSV, CSV or JSON lines described by keys (task.train,
task.text, task.label ...). Dev is scored as training goes and the best weights are kept; with several seeds mean and spread are
reported. Stopped, the same command goes on. docs/finetuning.md explains every step.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.commands.console import Console

if TYPE_CHECKING:
    from seedbed.config import Config
    from seedbed.finetune.config import FinetuneConfig

EXAMPLES = """examples:
  seedbed finetune runs/wiki-en --task books-en
  seedbed finetune runs/wiki-en --task sst2 --data data
  seedbed finetune runs/wiki-en --task sst2 --data data seeds=5 max_train_examples=5000
  seedbed finetune runs/wiki-en task.name=mail 'task.train=[mail.tsv]' task.text=subject task.label=folder
  seedbed finetune path/to/bert-folder --config mail.yaml --out runs/mail learning_rate=3e-5

known tasks: books-en books-zh sst2 cola mrpc rte stsb-en stsb-zh subjectivity chnsenticorp tnews eprstmt bustm ocnli banking77
financial-phrasebank. `seedbed finetune MODEL --print` prints every key with its meaning."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a run folder, its model folder, or a Hugging Face folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    parser.add_argument("--task", metavar="NAME", help="a known task (below)")
    parser.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="folder of the task's files")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration (YAML)")
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="run folder for the result (default: the model's run)"
    )
    parser.add_argument(
        "--print", action="store_true", help="print the configuration with its keys explained"
    )
    parser.add_argument("--strict", action="store_true", help="fail (exit 3) when any line is rejected")
    parser.add_argument(
        "--replace", action="store_true", help="start over where other settings were used before"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def config_kind() -> type[Config]:
    """Return what the overrides of this verb are keys of."""
    from seedbed.finetune.config import FinetuneConfig

    return FinetuneConfig


def run(options: argparse.Namespace) -> int:
    """Fine-tune."""
    from seedbed.api import model_folder
    from seedbed.commands.signals import collect_signals
    from seedbed.config import commented_yaml
    from seedbed.errors import ConfigError, TaskError
    from seedbed.finetune.classify import FinetuneStopped, finetune
    from seedbed.lock import owned
    from seedbed.runtime import prepare_process

    console, config = Console(as_json=options.json), _config(options)
    if options.print:
        console.result(config.model_dump(mode="json"), text=commented_yaml(config))
        return 0
    source = model_folder(options.model)
    run_folder = options.out or _run_of(options.model, source)
    if run_folder is None:
        raise ConfigError(
            f"{options.model} belongs to no run.", hint="name a folder for the result: --out runs/mine"
        )
    prepare_process(config.runtime)
    console.heading(f"finetune {config.task.name}")
    try:
        with owned(run_folder), collect_signals() as received, console.bars():
            result = finetune(
                config,
                source,
                run_folder,
                replace=options.replace,
                progress=console.progress,
                is_interrupted=lambda: bool(received),
            )
    except FinetuneStopped as stop:
        name = signal.Signals(received[0]).name
        console.note(
            f"stopped by {name} in seed {stop.seed} after step {stop.window:,}; everything is saved."
            "\nto go on, give the same command"
        )
        return 128 + received[0]
    folder = run_folder / f"finetune-{config.task.name}"
    _show(console, result)
    if options.strict and result["rejected"]["lines"]:
        raise TaskError(f"{result['rejected']['lines']} lines were rejected.", hint="--json lists the first")
    console.result(
        {**result, "path": str(folder)},
        text=f"result: {folder / 'metrics.json'}\nmodel:  {folder / 'model'}"
        + (
            f"   (our own form: {result['own_form_because']})"
            if result["own_form_because"]
            else "   (opens in transformers as it is)"
        ),
    )
    return 0


def _config(options: argparse.Namespace) -> FinetuneConfig:
    """Read the configuration: a known task, then the file, then what the command line says."""
    import difflib

    from seedbed.config import load_config, read_yaml, validate
    from seedbed.errors import ConfigError
    from seedbed.finetune.config import FinetuneConfig
    from seedbed.tasks import TASKS

    if options.task is None:
        config = load_config(FinetuneConfig, options.config, options.overrides)
        return config.updated(task=config.task.inside(options.data)) if options.data != Path() else config
    if options.task not in TASKS:
        nearest = difflib.get_close_matches(options.task, TASKS, n=1, cutoff=0.4)
        raise ConfigError(
            f"there is no known task {options.task!r}.",
            hint=f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(TASKS)}",
        )
    data = read_yaml(options.config) if options.config is not None else {}
    known = TASKS[options.task].inside(options.data).model_dump(mode="json")
    data["task"] = {**known, **data.get("task", {})}
    # Parsed and checked together, as in a recipe (a key may belong to the kind another one names), then laid over the task.
    changes = load_config(FinetuneConfig, None, options.overrides).model_dump(mode="json", exclude_unset=True)
    data = _over(data, changes)
    return validate(FinetuneConfig, data, place="the configuration")


def _over(below: Any, above: Any) -> Any:
    """Lay mappings over each other."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _over(below.get(key), value) for key, value in above.items()}}
    return above


def _run_of(path: Path, source: Path) -> Path | None:
    """Return the run a model folder belongs to."""
    for candidate in (path, path.parent):
        if (candidate / "model").exists() and (candidate / "model").resolve() == source.resolve():
            return candidate
    return None


def _show(console: Console, result: dict[str, Any]) -> None:
    """Print scores beside the plainest answer."""
    rows = []
    for split, scores in result["scores"].items():
        for name, spread in scores.items():
            floor = result["baselines"][split].get(name)
            sd = "" if spread["sd"] is None else f"{spread['sd']:.4f}"
            rows.append(
                [f"{split} {name}", f"{spread['mean']:.4f}", sd, "-" if floor is None else f"{floor:.4f}"]
            )
    plain = "mean" if result["kind"] == "regression" else "majority"
    console.table(rows, header=["", "mean", "sd", plain])
    train = result["cut"]["train"]
    if train["examples"]:
        share = train["tokens"] / max(1, train["of_tokens"])
        console.note(
            f"{train['examples']:,} training examples were cut to max_length ({share:.1%} of tokens)"
        )
    if lines := result["rejected"]["lines"]:
        console.note(f"{lines:,} lines rejected; metrics.json lists the first")
