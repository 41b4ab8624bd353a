"""Torture seedbed: `python -m tests.torture NAME` does one fault many times and says what survived.

    python -m tests.torture kill --trials 200 --seed 0     one JSON line at the end; exit code 1 if anything failed
    python -m tests.torture kill --only 17 --seed 0        one trial again
    python -m tests.torture kill --mutant                  against a seedbed that is broken on purpose: must fail
    python -m tests.torture --list

The faults and what must hold are in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from collections.abc import Sequence

ITEMS = {
    "kill": "SIGKILL at random moments, several times, at epoch edges, in the resume",
    "crash_points": "SIGKILL before every single file operation of a run; loss of power",
    "signals": "SIGTERM and SIGINT, once and twice",
    "disk": "a full, failing or forbidden disk at every write of every stage",
    "numeric": "NaN, infinity and spikes in gradients, on one worker and on all",
    "bit_flips": "one bit of one file",
    "locks": "eight starts at once on one run folder; a killed owner",
    "elastic": "one worker, then two, then one",
    "goodput": "a kill a minute for ten minutes",
    "worker": "one of two workers killed, stopped, or with a flipped bit",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    made.add_argument("name", choices=ITEMS, nargs="?")
    made.add_argument("--list", action="store_true", help="name the items and their mutants")
    made.add_argument("--trials", type=int, help="how many; default: the long tier's number")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--only", type=int, help="run this one trial")
    made.add_argument("--short", action="store_true", help="the tier of seconds")
    made.add_argument(
        "--mutant", nargs="?", const="", help="run a variant broken on purpose (default: the item's first)"
    )
    made.add_argument(
        "--objective", choices=("masked_lm", "causal_lm", "span_corruption"), default="masked_lm"
    )
    made.add_argument(
        "--strace", action="store_true", help="crash_points: by the kernel's tracer, not in Python"
    )
    made.add_argument("--power", action="store_true", help="crash_points: loss of power instead of a kill")
    made.add_argument("--tmpfs", action="store_true", help="disk: real full file systems (needs unshare -rm)")
    made.add_argument("--minutes", type=float, default=10.0, help="goodput: how long")
    made.add_argument("--mean-seconds", type=float, default=60.0, help="goodput: between kills")
    made.add_argument(
        "--scratch", help="folder for what trials share; default: a new one, removed at the end"
    )
    made.add_argument("--serve", action="store_true", help="read such lines from standard input")
    return made


def main(words: Sequence[str]) -> int:
    """Run what the words say."""
    options = parser().parse_args(words)
    if options.list or (options.name is None and not options.serve):
        for name, text in ITEMS.items():
            mutants = ", ".join(importlib.import_module(f"tests.torture.{name}").MUTANTS)
            print(f"{name:13} {text}\n{'':13} mutants: {mutants}")
        return 0
    _import_once()
    return _serve() if options.serve else _run(options, words)


def _run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from pathlib import Path

    from tests.torture.trials import as_line, run_item

    module = importlib.import_module(f"tests.torture.{options.name}")
    mutant = options.mutant
    if mutant == "":
        mutant = next(iter(module.MUTANTS))
    if mutant is not None and mutant not in module.MUTANTS:
        sys.stderr.write(f"{options.name} has the mutants {', '.join(module.MUTANTS)}\n")
        return 2
    result = run_item(
        options.name,
        module,
        trials=options.trials,
        seed=options.seed,
        mutant=mutant,
        is_short=options.short,
        only=options.only,
        options=vars(options),
        scratch=Path(options.scratch) if options.scratch else None,
        command=f"python -m tests.torture {shlex.join(words)}",
    )
    print(as_line(result), flush=True)
    return 1 if result["failures"] else 0


def _import_once() -> None:
    """Import all that children need, and do nothing with it: they are forks of this process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import seedbed.runtime

    seedbed.runtime.prepare_environment()
    import torch
    import torch._dynamo
    import torch.distributed  # noqa: F401

    import seedbed.cli

    for name in ("pretrain", "tokens", "report", "pretraining"):
        importlib.import_module(f"seedbed.commands.{name}")


def _serve() -> int:
    """Run an item for each line of words, in a fork of its own, so that many share one import."""
    for line in sys.stdin:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                words = json.loads(line)
                code = _run(parser().parse_args(words), words)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
