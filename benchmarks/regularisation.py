"""Does regularisation pay? Fine-tune a pretrained model plainly and with each switch, with several seeds, and print one table.

Arms differ in one switch and share everything else: examples, seeds, rate, epochs. A seed keys the new head, the order of
examples and dropout, so differences are taken seed by seed, with a 95 % t interval. Results stay in the output folder;
the same command goes on where it was stopped, and more seeds or arms are added to those there. An arm may name its strength:
`fgm=0.1` is FGM with epsilon 0.1, `r_drop=0.5` R-Drop of weight 0.5; steps of PGD and FreeLB stay in proportion.

    python benchmarks/regularisation.py runs/wiki-en --task sst2 --data data --out runs/regularisation-en
    python benchmarks/regularisation.py runs/wiki-zh --task chnsenticorp --data data --out runs/regularisation-zh --seeds 5
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "r_drop": {"regularisation": {"r_drop": 1.0}},
    "fgm": {"regularisation": {"adversarial": {"name": "fgm", "epsilon": 0.5}}},
    "free_lb": {"regularisation": {"adversarial": {"name": "free_lb"}}},
    "pgd": {"regularisation": {"adversarial": {"name": "pgd", "epsilon": 0.5, "step_size": 0.2}}},
    "smart": {"regularisation": {"adversarial": {"name": "smart"}}},
    "stochastic_depth": {"stochastic_depth": 0.1},
}
"""Arms by name, at the strength they have where none is given."""


def arm_of(text: str) -> dict[str, Any]:
    """Return the switches of an arm, `name` or `name=strength`."""
    name, _, given = text.partition("=")
    if name not in ARMS:
        raise argparse.ArgumentTypeError(f"no arm {name!r}; there are {', '.join(ARMS)}")
    switches = copy.deepcopy(ARMS[name])
    if not given:
        return switches
    strength = float(given)
    if name == "r_drop":
        switches["regularisation"]["r_drop"] = strength
    elif name == "stochastic_depth":
        switches["stochastic_depth"] = strength
    elif name == "smart":
        switches["regularisation"]["adversarial"]["weight"] = strength
    elif name == "plain":
        raise argparse.ArgumentTypeError("plain has no strength")
    else:
        section = switches["regularisation"]["adversarial"]
        section["epsilon"] = strength
        if name != "fgm":
            section["step_size"] = round(0.4 * strength, 6)
        if name == "free_lb":
            section["start"] = round(0.2 * strength, 6)
    return switches


# 97.5 % points of Student's t by degrees of freedom
T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)


def main() -> None:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a run folder, its model folder, or a Hugging Face folder")
    parser.add_argument("--task", default="sst2", help="a known task (seedbed finetune --help lists them)")
    parser.add_argument("--data", type=Path, required=True, help="folder of the task's files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM[=STRENGTH]",
        default=["plain", "r_drop", "fgm", "free_lb"],
        help=f"the first is what the others are compared with; {', '.join(ARMS)}",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--examples", type=int, default=5000, help="training examples, chosen by hash; 0: all"
    )
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument(
        "--learning-rate", type=float, help="default: by the model's width, as `seedbed finetune`"
    )
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    try:
        arms = {name: arm_of(name) for name in options.arms}
    except (argparse.ArgumentTypeError, ValueError) as error:
        parser.error(str(error))

    from seedbed.runtime import RuntimeConfig, prepare_environment, prepare_process

    prepare_environment()
    prepare_process(RuntimeConfig(threads=options.threads))
    results = {arm: run_arm(options, arm, switches) for arm, switches in arms.items()}
    print(table(results, options.arms[0]))


def run_arm(options: argparse.Namespace, arm: str, switches: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune with these switches; returns what `metrics.json` holds, and the seconds this call took."""
    from seedbed.api import model_folder
    from seedbed.config import validate
    from seedbed.finetune.classify import finetune
    from seedbed.finetune.config import FinetuneConfig
    from seedbed.tasks import TASKS

    data: dict[str, Any] = {
        "task": TASKS[options.task].inside(options.data).model_dump(mode="json"),
        "seeds": options.seeds,
        "max_train_examples": options.examples,
        "epochs": options.epochs,
        "runtime": {"threads": options.threads},
        **switches,
    }
    if options.learning_rate is not None:
        data["optim"] = {"learning_rate": options.learning_rate}
    began = time.monotonic()
    result = finetune(
        validate(FinetuneConfig, data, place=arm), model_folder(options.model), options.out / arm
    )
    seconds = time.monotonic() - began
    path = options.out / arm / "seconds.json"
    if seconds > 5:  # else it was there already
        path.write_text(json.dumps(seconds), encoding="utf-8")
    elif path.exists():
        seconds = json.loads(path.read_text(encoding="utf-8"))
    return {**result, "seconds": seconds}


def table(results: dict[str, dict[str, Any]], base: str) -> str:
    """Return the table in Markdown: mean and spread on every split, and the difference from the first arm seed by seed."""
    lines = []
    metric = results[base]["metric"]
    splits = list(results[base]["scores"])
    lines.append(
        "| arm | "
        + " | ".join(f"{s} {metric}, mean (sd) | difference, 95 %" for s in splits)
        + " | seconds |"
    )
    lines.append("|---" * (2 + 2 * len(splits)) + "|")
    for arm, result in results.items():
        cells = []
        for split in splits:
            values = result["scores"][split][metric]["values"]
            spread = f" ({statistics.stdev(values):.4f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{spread}")
            cells.append(
                "" if arm == base else difference(values, results[base]["scores"][split][metric]["values"])
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {result['seconds']:.0f} |")
    floors = ", ".join(f"{split} {results[base]['baselines'][split][metric]:.4f}" for split in splits)
    return "\n".join(
        [*lines, "", f"majority: {floors}; {results[base]['examples']['train']:,} training examples"]
    )


def difference(values: list[float], base: list[float]) -> str:
    """Return the mean difference seed by seed with its t interval."""
    each = [a - b for a, b in zip(values, base, strict=True)]
    mean = statistics.fmean(each)
    if len(each) < 2:
        return f"{mean:+.4f}"
    freedom = min(len(each) - 1, len(T_975))
    return f"{mean:+.4f} ± {T_975[freedom - 1] * statistics.stdev(each) / math.sqrt(len(each)):.4f}"


if __name__ == "__main__":
    main()
