"""Go from one worker to two and back, at ten places, over three epochs: the same rows, and in exact mode the same bits.

In odd trials gradients are summed as usual: then the rows are the same and losses agree to 1e-5, relative.
"""

from __future__ import annotations

from pathlib import Path

from tests.torture.numeric import _train
from tests.torture.toy_run import Failure, Toy, last_window, newest, read_log
from tests.torture.trials import Bench

LONG, SHORT = 20, 1
NOTHING = {"kind": "none", "windows": [], "worker": 0}


def trial(bench: Bench, number: int) -> None:
    """Cut twice, compare."""
    exact = number % 2 == 0
    toy = bench.toy(exact=exact, micro_batch_rows=1) if exact else bench.toy(micro_batch_rows=2)
    whole = toy.reference()
    chance = bench.chance(number)
    first = 1 + (number // 2) % 10 * 2
    second = min(23, first + chance.randint(1, 4))
    folder = toy.new_run(bench.scratch / "trial")
    order = (1, 2, 1) if chance.random() < 0.7 else (2, 1, 2)
    for num_workers, words in zip(
        order, [("--stop-after", str(first)), ("--stop-after", str(second)), ()], strict=True
    ):
        code, said = _train(toy, folder, num_workers, NOTHING, *words)
        if code:
            raise Failure(f"exit code {code} with {num_workers} workers: {said[-1500:]}")
        if words and last_window(folder / "run") != int(words[1]):
            raise Failure(f"stopped after step {last_window(folder / 'run')}, not {words[1]}")
    _compare(toy, whole, folder / "run", exact=exact)


def _compare(toy: Toy, whole: Path, run: Path, *, exact: bool) -> None:
    rows, others = (_rows(place) for place in (whole, run))
    if rows != others:
        window = next(w for w in sorted(rows) if rows[w] != others.get(w))
        raise Failure(f"other rows in window {window}")
    log, other_log = read_log(whole), read_log(run)
    if exact:
        if log != other_log:
            raise Failure("the log differs")
        for name in ("model.safetensors", "optimizer.safetensors"):
            if (newest(whole) / name).read_bytes() != (newest(run) / name).read_bytes():
                raise Failure(f"{name} differs")
        return
    for line, other in zip(log, other_log, strict=True):
        if abs(line["loss"] - other["loss"]) > 1e-5 * abs(line["loss"]):
            raise Failure(f"loss {other['loss']} at step {line['window']}, not {line['loss']}")


def _rows(run: Path) -> dict[int, list]:
    from seedbed.training.row_record import RowRecord

    return RowRecord.read(run / "pretrain")


def _shared_unevenly() -> None:
    """The second worker reads the first one's rows."""
    from seedbed.training.state import TrainingState

    TrainingState.data_worker = property(lambda self: 0)


MUTANTS = {"rows twice": _shared_unevenly}
