"""Compare strategies, or any other parts of a recipe, at equal cost on the same text.

Arms vary what they like of a recipe. Each trains under every seed, at the same tokens, operations or minutes, is judged, and is
published as soon as it is done. Started again, on this machine or another that reaches the same storage, the command goes on with
what is left; several at once share the work. An arm added to the file tomorrow joins those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.commands.console import Console

if TYPE_CHECKING:
    from seedbed.compare.board import Board, Job
    from seedbed.compare.config import CompareConfig
    from seedbed.config import Config

EXAMPLES = """examples:
  seedbed compare compare.yaml
  seedbed compare compare.yaml cost.minutes=3 seeds=1            a first look
  seedbed compare compare.yaml --only masked causal              these arms
  seedbed compare compare.yaml --report                          the page of what is finished, and nothing else
  seedbed compare compare.yaml --again                           at equal minutes: what the machine was too slow for, once more
  seedbed compare --print                                        every key with its meaning

A comparison file names the shared recipe and the arms:
  recipe:
    corpus: {inputs: [my-text.txt.gz]}
  arms:
    masked: {}
    masked_40: {objective.mask_rate: 0.4}
    causal: {objective.name: causal_lm}"""

_ASK_SECONDS = 1.0
_BUSY = 7  # exit code of an arm whose folder another process holds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, nargs="?", help="the comparison (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override any key of the file")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="work on these arms only")
    parser.add_argument("--report", action="store_true", help="write the page of what is finished, and end")
    parser.add_argument(
        "--import",
        dest="outcomes",
        nargs="+",
        type=Path,
        default=[],
        metavar="JSON",
        help="take results over from the compare.json of the same comparison elsewhere: the same arms, seeds and settings",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="first set the runs aside that were left out because the machine's speed had moved, so that they are trained again",
    )
    parser.add_argument("--print", action="store_true", help="print the keys of a comparison explained")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--job", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)


def config_kind() -> type[Config]:
    """Return what the overrides of this verb are keys of."""
    from seedbed.compare.config import CompareConfig

    return CompareConfig


def run(options: argparse.Namespace) -> int:
    """Work on the comparison until nothing is left to do, or do one arm of it."""
    from seedbed.compare.config import CompareConfig
    from seedbed.config import commented_yaml, load_config
    from seedbed.errors import ConfigError

    console = Console(as_json=options.json)
    if options.print:
        console.result(CompareConfig().model_dump(mode="json"), text=commented_yaml(CompareConfig()))
        return 0
    config = load_config(CompareConfig, options.file, options.overrides)
    if options.job:
        return _one(config, options.job[0], int(options.job[1]), console)
    if len(config.arms) < 2:
        raise ConfigError(
            f"{options.file or 'the command line'} names {len(config.arms)} arms; a comparison has two or more.",
            hint="arms: {masked: {}, causal: {objective.name: causal_lm}}",
        )
    if unknown := sorted(set(options.only or ()) - set(config.arms)):
        raise ConfigError(f"there is no arm {unknown[0]!r}.", hint=f"arms: {', '.join(config.arms)}")
    for path in options.outcomes:
        _take_over(path, config, console)
    if options.again:
        _renew(config, console, options.only)
    if not options.report and (
        stopped := work(options.file, options.overrides, config, console, options.only)
    ):
        return stopped
    return _tell(config, console)


def work(
    file: Path | None,
    overrides: Sequence[str],
    config: CompareConfig,
    console: Console,
    only: Sequence[str] | None = None,
) -> int:
    """Take jobs, do each in a process of its own, publish what it came to, until none is left.

    Args:
        file: the comparison, as the processes of the jobs read it.
        overrides: of it.
        config: what the two say.
        console: told of progress.
        only: arms to work on; None: all.

    Returns:
        0, or the exit code where a signal stopped it.
    """
    from seedbed.commands.arm import recipe_of
    from seedbed.commands.signals import collect_signals

    for arm in config.arms:
        recipe_of(config, arm, config.seed_list()[0])  # refuses what is wrong before anything is trained
    jobs, board = _jobs(config), _board(config)
    board.add(jobs)
    wanted = [job.key for job in jobs if not only or job.arm in only]
    with collect_signals() as received:
        return _until_done([str(file), *overrides], config, board, wanted, console, received)


def results_of(config: CompareConfig) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what finished arms came to, by arm and seed."""
    found = _board(config).results()
    return {(job.arm, job.seed): found[job.key] for job in _jobs(config) if job.key in found}


def _take_over(path: Path, config: CompareConfig, console: Console) -> None:
    """Publish the results of another comparison's JSON that are of this one's jobs; say which are not.

    Raises:
        DataError: the file is not an outcome.
    """
    from seedbed.errors import DataError

    hint = "name the compare.json of a comparison, or a file of experiments/results"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = [
            (str(r["arm"]), int(r["seed"]), str(r["settings"]), float(r["valid"]["loss"]), r)
            for r in told["results"]
        ]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint=hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the outcome of a comparison: {error!r}.", hint=hint) from error
    jobs, board = {job.key: job for job in _jobs(config)}, _board(config)
    board.add(list(jobs.values()))
    known = {(job.arm, job.seed) for job in jobs.values()}
    taken, others = 0, []
    for arm, seed, settings, loss, result in found:
        key = f"{arm}/{seed}/{settings}"
        if key not in jobs:
            others.append(
                f"{arm}, seed {seed}: "
                + ("other settings" if (arm, seed) in known else "not in this comparison")
            )
        elif (claimed := board.claim([key])) is not None:
            taken += board.finish(claimed[0], result, value=loss)
    there = len(found) - taken - len(others)
    console.note(
        f"{path}: {taken} of {len(found)} results taken over" + (f", {there} were there" if there else "")
    )
    for why in others:
        console.note(f"  left out: {why}")


def _renew(config: CompareConfig, console: Console, only: Sequence[str] | None) -> None:
    """Put the runs up again that do not compare with the others."""
    from seedbed.compare.equal_minutes import usable

    _, drifted = usable(config, results_of(config))
    jobs, board = {(job.arm, job.seed): job for job in _jobs(config)}, _board(config)
    renewed = [which for which in drifted if (not only or which[0] in only) and board.renew(jobs[which].key)]
    if not renewed:
        console.note("no run was left out for the speed of the machine; none is trained again")
        return
    listed = ", ".join(f"{arm} (seed {seed})" for arm, seed in sorted(renewed))
    console.note(f"trained again: {listed}")


def _make_room(config: CompareConfig, job: Job) -> None:
    """Move the folder of a run aside whose result was; the one that replaces it begins anew, and goes on where it is stopped."""
    from seedbed.commands.arm import arm_folder

    folder = arm_folder(config, job.arm, job.seed)
    aside = folder.with_name(f"{folder.name}.aside-{job.renewals}")
    if job.renewals and folder.exists() and not aside.exists():
        folder.rename(aside)


def _jobs(config: CompareConfig) -> list[Job]:
    """Return every arm under every seed; all arms have their first seed before any has its second."""
    from seedbed.commands.arm import settings_digest
    from seedbed.compare.board import Job

    return [
        Job(arm, seed, settings_digest(config, arm, seed))
        for seed in config.seed_list()
        for arm in config.arms
    ]


def _board(config: CompareConfig) -> Board:
    from seedbed.compare.board import Board

    return Board(config.storage or Path(config.out).expanduser() / "compare.db", config.name)


def _until_done(
    words: Sequence[str],
    config: CompareConfig,
    board: Board,
    wanted: Sequence[str],
    console: Console,
    received: list[int],
) -> int:
    """Work until no job is left; returns the exit code where a signal stopped it, else 0."""
    while not received:
        claimed = board.claim(wanted)
        if claimed is None:
            others = {key: who for key, who in board.running().items() if key in wanted}
            if not others:
                return 0
            console.note(f"waiting for {', '.join(sorted(set(others.values())))}")
            for _ in range(50):
                if not received:
                    time.sleep(0.1)
            continue
        ticket, job, attempt = claimed
        done = sum(key in board.results() for key in wanted)
        console.heading(f"{job.arm}, seed {job.seed} ({done + 1} of {len(wanted)})")
        with board.alive(ticket):
            _make_room(config, job)
            code, errors = in_process(words, job.arm, job.seed, received)
        if code == 0:
            from seedbed.commands.arm import arm_folder

            path = arm_folder(config, job.arm, job.seed) / "result.json"
            result = json.loads(path.read_text(encoding="utf-8"))
            board.finish(ticket, result, value=float(result["valid"]["loss"]))
            _write_page(config)
        elif received or code in (130, 143):
            board.give_back(ticket)
        elif code == _BUSY:  # a worker that was killed left its child behind, which is just saving
            board.give_back(ticket)
            time.sleep(2.0)
        else:
            board.fail(ticket, errors or f"exit code {code}")
            console.note(f"{job.arm}, seed {job.seed} failed (attempt {attempt}): {errors}")
    number = received[0]
    console.note(
        f"stopped by {signal.Signals(number).name}; finished arms are kept.\nto go on, give the same command"
    )
    return 128 + number


def in_process(
    given: Sequence[str],
    arm: str,
    seed: int,
    received: list[int],
    *,
    ends: Callable[[], bool] = lambda: False,
) -> tuple[int, str]:
    """Run an arm under a seed in a process of its own, so that its memory, its threads and its end are its own.

    Args:
        given: the comparison's file and its overrides.
        arm: of it.
        seed: of the run.
        received: signals this process was sent; the first is passed on once.
        ends: asked now and then; once true, the run is stopped.

    Returns:
        The exit code, and the last error it printed.
    """
    words = [sys.executable, "-m", "seedbed", "compare", *given, "--job", arm, str(seed)]
    # A session of its own: a Control-C reaches this process only, which asks the child to finish its step and save.
    child = subprocess.Popen(  # noqa: S603 - our own interpreter, arguments as they were given to it
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    last: list[str] = []

    def pass_on() -> None:
        assert child.stderr is not None
        for line in child.stderr:
            sys.stderr.write(line)
            if line.strip():
                last.append(line.strip())
                del last[:-8]

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    is_told = False
    asked = time.monotonic()
    while True:
        try:
            code = child.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if not is_told and time.monotonic() - asked > _ASK_SECONDS:
                asked = time.monotonic()
                is_told = ends()
                if is_told:
                    child.send_signal(signal.SIGTERM)
            if received and not is_told:
                child.send_signal(signal.SIGTERM)
                is_told = True
    reader.join(timeout=5)
    errors = [line for line in last if line.startswith("error:")]
    return code, (errors or last or [""])[-1]


def _one(config: CompareConfig, arm: str, seed: int, console: Console) -> int:
    """Do one job: the child's part."""
    from seedbed.commands.arm import run_arm
    from seedbed.commands.pretraining import Interrupted

    _end_with_parent()
    try:
        run_arm(config, arm, seed, console, results_of(config) if config.cost.minutes else {})
    except Interrupted as stop:
        return 128 + stop.signal_number
    return 0


def _end_with_parent() -> None:
    """Ask this process to finish its step and save when the worker that started it is gone, killed for instance."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def _tell(config: CompareConfig, console: Console) -> int:
    """Print the outcome and where the page is."""
    from seedbed.compare.page import overview

    out = Path(config.out).expanduser()
    outcome = _write_page(config)
    keys = {job.key: job for job in _jobs(config)}
    failures = {key: why for key, why in _board(config).failures().items() if key in keys}
    header, rows = overview(outcome, is_short=True)
    console.table(rows, header=header)
    for key, why in failures.items():
        console.note(f"failed: {keys[key].arm}, seed {keys[key].seed}: {why}")
    said = " ".join(outcome["verdict"]["sentences"])
    console.result(outcome, text=f"{said}\npage: {out / 'compare.html'}\njson: {out / 'compare.json'}")
    return 3 if failures else 0


def _write_page(config: CompareConfig) -> dict[str, Any]:
    """Write page and JSON of what is finished; returns what they say."""
    from seedbed.artifact import write_json, write_text
    from seedbed.compare.page import build_page, drawings, outcome_of
    from seedbed.errors import disk_errors
    from seedbed.page import standalone

    out = Path(config.out).expanduser()
    outcome = outcome_of(config, results_of(config))
    with disk_errors(out, doing="writing"):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "compare.json", outcome)
        write_text(out / "compare.html", build_page(outcome))
        for name, drawing in drawings(outcome).items():
            write_text(out / f"{name}.svg", standalone(drawing))
    return outcome
