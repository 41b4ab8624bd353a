"""Measure the peak memory of preparing a corpus, on a text and on twice that text.

    python benchmarks/prepare_memory.py TEXT... [--stages corpus tokenizer tokens] [--json]

What is measured: anonymous memory (the `Anonymous` line of /proc/PID/smaps_rollup, so heap, stacks and arrays, without the
file cache), summed over the process that does the work and all its children, sampled every 20 ms from outside. A peak
shorter than that can be missed, so the kernel's own high-water mark of resident memory (VmHWM, which also counts mapped
libraries) is printed beside it. Linux only.

"Twice" is the text plus a copy in which every line has its halves exchanged, so that no document is a duplicate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

INTERVAL_SECONDS = 0.02
GROWTH_ALLOWED = 1.10
PEAK_ALLOWED_BYTES = 1_500_000_000

Stage = Callable[[Path, Path], None]


def corpus(text: Path, run: Path) -> None:
    """Clean the files in `text`."""
    from seedbed.corpus.pipeline import CorpusConfig, build_corpus

    build_corpus(CorpusConfig(inputs=(str(text),)), run)


def tokenizer(_: Path, run: Path) -> None:
    """Learn the default vocabulary."""
    from seedbed.artifact import open_verified
    from seedbed.corpus.pipeline import iter_documents
    from seedbed.tokenizer.train import TokenizerConfig, build_tokenizer

    made = open_verified(run / "corpus")
    build_tokenizer(
        TokenizerConfig(),
        lambda split: (document.text for document in iter_documents(made, split)),
        corpus_digest=made.digest,
        run=run,
    )


def tokens(_: Path, run: Path) -> None:
    """Write the token store."""
    from seedbed.artifact import open_verified
    from seedbed.data.store import TokensConfig, build_store

    build_store(TokensConfig(), open_verified(run / "corpus"), open_verified(run / "tokenizer"), run)


STAGES: dict[str, Stage] = {"corpus": corpus, "tokenizer": tokenizer, "tokens": tokens}
"""In the order in which they run; each gets the folder with the text and the run folder."""


def work(text: Path, run: Path, stages: list[str]) -> None:
    """Run the stages in this process, naming each on stdout as it begins."""
    for name in stages:
        print(name, flush=True)
        STAGES[name](text, run)


def anonymous_bytes(process: psutil.Process) -> int:
    """Return the anonymous memory of a process and all its children."""
    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in tree:
        try:
            rollup = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(
            int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Anonymous:")
        )
    return total


def measure(text: Path, stages: list[str]) -> dict[str, Any]:
    """Run the stages in a fresh process and return peaks by stage, seconds and bytes of text."""
    peaks: dict[str, int] = {"start": 0}
    current = "start"
    high_water = 0
    with tempfile.TemporaryDirectory(dir=text.parent) as run:
        command = [sys.executable, __file__, "--work", str(text), run, "--stages", *stages]
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def follow() -> None:
            nonlocal current
            assert child.stdout is not None
            for line in child.stdout:
                current = line.strip()

        reader = threading.Thread(target=follow)
        reader.start()
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peaks[current] = max(peaks.get(current, 0), anonymous_bytes(process))
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
                high_water = max(
                    [
                        high_water,
                        *(int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmHWM")),
                    ]
                )
            except (FileNotFoundError, ProcessLookupError):
                pass
            time.sleep(INTERVAL_SECONDS)
        reader.join()
        if child.returncode != 0:
            raise SystemExit(f"the stages failed with exit code {child.returncode}")
        seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in text.iterdir())
    return {
        "text_bytes": size,
        "seconds": round(seconds, 2),
        "peak_bytes": max(peaks.values()),
        "peak_bytes_by_stage": peaks,
        "resident_high_water_bytes": high_water,
    }


def write_texts(inputs: list[str], folder: Path) -> tuple[Path, Path]:
    """Write the text once and twice, uncompressed, as plain .txt files."""
    from seedbed.corpus.pipeline import read_documents

    once, twice = folder / "once", folder / "twice"
    once.mkdir()
    twice.mkdir()
    with (
        (once / "a.txt").open("w", encoding="utf-8") as a,
        (twice / "a.txt").open("w", encoding="utf-8") as b,
        (twice / "b.txt").open("w", encoding="utf-8") as c,
    ):
        for document in read_documents(inputs):
            text = document.text + "\n\n"
            a.write(text)
            b.write(text)
            c.write("\n".join(_exchange_halves(line) for line in text.split("\n")))
    return once, twice


def _exchange_halves(line: str) -> str:
    """Return another line of the same words (cut at a space where there is one), or of the same characters."""
    at = line.find(" ", len(line) // 2)
    at = len(line) // 2 if at < 0 else at
    return f"{line[at:].strip()} {line[:at]}" if at else line


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", nargs="*", help="files, folders or globs")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--work", nargs=2, metavar=("TEXT", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(Path(arguments.work[0]), Path(arguments.work[1]), arguments.stages)
        return
    if not sys.platform.startswith("linux"):
        raise SystemExit("needs Linux: memory is read from /proc")
    if not arguments.text:
        parser.error("name some text")
    with tempfile.TemporaryDirectory() as folder:
        once, twice = (measure(text, arguments.stages) for text in write_texts(arguments.text, Path(folder)))
    growth = twice["peak_bytes"] / once["peak_bytes"]
    result = {
        "stages": arguments.stages,
        "once": once,
        "twice": twice,
        "growth": round(growth, 3),
        "within_peak": once["peak_bytes"] < PEAK_ALLOWED_BYTES,
        "within_growth": growth <= GROWTH_ALLOWED,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, figures in (("once", once), ("twice", twice)):
        stages = ", ".join(f"{s} {p / 1e6:.0f}" for s, p in figures["peak_bytes_by_stage"].items())
        print(
            f"{name:6} {figures['text_bytes'] / 1e6:6.1f} MB of text  {figures['seconds']:6.1f} s"
            f"  peak {figures['peak_bytes'] / 1e6:.0f} MB ({stages})"
            f"  resident high water {figures['resident_high_water_bytes'] / 1e6:.0f} MB"
        )
    print(f"growth {growth:.2f} (allowed {GROWTH_ALLOWED})")


if __name__ == "__main__":
    main()
