"""Compare our tokenising with `tokenizers.encode_batch` and, where installed, tokie and gigatoken: same text, same ids.

    python benchmarks/tokenize_speed.py TEXT... [--megabytes 20] [--rounds 5] [--json]

Sides take turns, round by round; printed are medians in MB of UTF-8 text a second, and the median over the rounds of each
side's rate divided by that of a warm `encode_batch` in the same round. All get the same batches of lines, about a quarter of
a million characters each, and the cores of the machine. Ids are compared with those of `tokenizers` on all of the text first.

    ours         ids and where pre-tokens begin, as the stage `tokens` makes them: by two threads, comparisons included
    marks        the same, and marks for words (rjieba's in Chinese) and sentences
    encode_batch `tokenizers`; the ids stay in its objects, which favours it
    fast         its `encode_batch_fast`, which leaves out offsets
    tokie        its `encode_batch`; ids stay in its objects (special tokens taken out of its copy, it would read them in text)
    gigatoken    its `encode_batch`
    stage, spans the stage `tokens` from corpus to store, with looking up and without

Cold is the first time an encoder meets the text, warm the second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

BATCH_CHARACTERS = 1 << 18
Batches = list[list[str]]
Encode = Callable[[list[str]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", nargs="+", help="files, folders or globs")
    parser.add_argument("--algorithm", nargs="+", choices=("wordpiece", "bpe"), default=["wordpiece", "bpe"])
    parser.add_argument("--tokenizer", help="take this tokenizer instead of learning any")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--megabytes", type=float, default=20, help="of text, from its beginning")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-stage", action="store_true", help="leave out the whole stage")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ["loaded"] if options.tokenizer else options.algorithm:
            reports.append(measure(name, options, Path(folder) / name))
            if not options.json:
                show(reports[-1])
    if options.json:
        print(json.dumps(reports))


def measure(name: str, options: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Prepare a run, compare the ids of all sides, and time them in turn."""
    from seedbed.corpus.pipeline import CorpusConfig, build_corpus, iter_documents
    from seedbed.tokenizer.tokenizer import Tokenizer
    from seedbed.tokenizer.train import TokenizerConfig, build_tokenizer

    corpus = build_corpus(CorpusConfig(inputs=(str(write_text(options, run)),)), run)
    config = TokenizerConfig(
        path=options.tokenizer,
        algorithm="wordpiece" if options.tokenizer else name,
        vocab_size=options.vocab_size,
    )
    made = build_tokenizer(
        config,
        lambda split: (document.text for document in iter_documents(corpus, split)),
        corpus_digest=corpus.digest,
        run=run,
    )
    tokenizer = Tokenizer.load(made.path)
    batches = list(batches_of(d.text for d in iter_documents(corpus, "train")))
    size = sum(len(line.encode("utf-8")) for batch in batches for line in batch) / 1e6
    sides = sides_of(tokenizer, made.path)
    same = compare_ids(tokenizer, sides, batches)
    rates: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        rates.setdefault(name, []).append(size / (time.perf_counter() - began))

    for number in range(options.rounds):
        names = [name for name in sides if same[name]]
        for side in names if number % 2 == 0 else names[::-1]:
            make, num_threads = sides[side]
            encode = make()
            for state in ("cold", "warm"):
                timed(f"{side} {state}", lambda: run_batches(encode, batches, num_threads))  # noqa: B023
        if not options.no_stage:
            for lookup in (True, False) if number % 2 == 0 else (False, True):
                timed("stage" if lookup else "spans", lambda: run_stage(corpus, made, run, lookup=lookup))  # noqa: B023
    reference = rates["encode_batch warm"]
    return {
        "tokenizer": name,
        "megabytes": round(size, 2),
        "tokens": sum(len(e) for b in batches for e in tokenizer.plain_backend.encode_batch(b)),
        "same_ids": same,
        "megabytes_per_second": {k: round(statistics.median(v), 2) for k, v in rates.items()},
        "ratio_to_encode_batch_warm": {
            k: round(statistics.median(a / b for a, b in zip(v, reference, strict=True)), 2)
            for k, v in rates.items()
        },
        "stage_ratio": None
        if options.no_stage
        else round(statistics.median(a / b for a, b in zip(rates["stage"], rates["spans"], strict=True)), 2),
        "rounds": options.rounds,
        "cores": len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count(),
        "versions": {
            package: metadata.version(package)
            for package in ("tokenizers", "numpy", "tokie", "gigatoken")
            if util.find_spec(package)
        },
    }


def write_text(options: argparse.Namespace, run: Path) -> Path:
    """Write the beginning of the text as one file."""
    from seedbed.corpus.pipeline import read_documents

    folder = run / "text"
    folder.mkdir(parents=True)
    left = options.megabytes * 1e6
    with (folder / "text.txt").open("w", encoding="utf-8") as file:
        for document in read_documents(options.text):
            file.write(document.text + "\n\n")
            left -= len(document.text.encode("utf-8"))
            if left <= 0:
                break
    return folder


def batches_of(texts: Iterable[str]) -> Iterable[list[str]]:
    """Group lines as the stage does."""
    batch: list[str] = []
    size = 0
    for text in texts:
        for line in text.split("\n"):
            batch.append(line)
            size += len(line)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def sides_of(tokenizer: Any, folder: Path) -> dict[str, tuple[Callable[[], Encode], int]]:
    """Return for each side what makes its encoder anew, and in how many threads it is called."""
    from tokenizers import Tokenizer as Backend

    from seedbed.data.marks import mark_tokens
    from seedbed.tokenizer.encoder import TextEncoder

    def ours() -> Encode:
        encoder = TextEncoder(tokenizer)
        if encoder.reason is not None:
            raise SystemExit(f"words are not looked up with this tokenizer: {encoder.reason}")
        return encoder.encode

    def marks() -> Encode:
        encode = ours()

        def both(texts: list[str]) -> Any:
            tokens = encode(texts)
            mark_tokens(texts, tokens, special_ids=(), segment_chinese=True)
            return tokens

        return both

    def plain() -> Any:
        backend = Backend.from_str(tokenizer.backend.to_str())
        backend.encode_special_tokens = True
        return backend

    sides: dict[str, tuple[Callable[[], Encode], int]] = {
        "ours": (ours, 2),
        "marks": (marks, 2),
        "encode_batch": (lambda: without_special(plain().encode_batch), 1),
        "fast": (lambda: without_special(plain().encode_batch_fast), 1),
    }
    if util.find_spec("tokie"):
        import tokie

        bare = folder.parent / "without-special.json"
        parts = json.loads(tokenizer.backend.to_str())
        bare.write_text(json.dumps(parts | {"added_tokens": [], "post_processor": None}), encoding="utf-8")
        sides["tokie"] = (lambda: without_special(tokie.Tokenizer.from_json(str(bare)).encode_batch), 1)
    if util.find_spec("gigatoken") and tokenizer.algorithm == "bpe":
        import gigatoken

        sides["gigatoken"] = (
            lambda: gigatoken.Tokenizer.from_json(tokenizer.backend.to_str()).encode_batch,
            1,
        )
    return sides


def without_special(encode: Callable[..., Any]) -> Encode:
    """Return a function that puts nothing around a text."""
    return lambda texts: encode(texts, add_special_tokens=False)


def compare_ids(
    tokenizer: Any, sides: dict[str, tuple[Callable[[], Encode], int]], batches: Batches
) -> dict[str, bool]:
    """Say which sides give the ids of `tokenizers` on all of the text; ours must.

    A side that fails on this tokenizer, or differs from it, is not timed.
    """
    same = dict.fromkeys(sides, True)
    encoders: dict[str, Encode] = {}
    for name, (make, _) in sides.items():
        try:
            encoders[name] = make()
        except Exception as error:  # of whatever kind the other library raises
            print(f"{name} refuses this tokenizer: {str(error).splitlines()[0]}", file=sys.stderr)
            same[name] = False
    for batch in batches:
        expected = np.concatenate([np.array(ids, np.int64) for ids in tokenizer.encode_batch(batch)])
        for name, encode in encoders.items():
            if same[name]:
                made = encode(batch)
                ids = (
                    made.ids
                    if hasattr(made, "ids")
                    else np.concatenate([np.asarray(ids_of(x)) for x in made])
                )
                same[name] = np.array_equal(ids, expected)
    if not (same["ours"] and same["marks"]):
        raise SystemExit("ids differ from those of tokenizers")
    return same


def ids_of(encoding: Any) -> Any:
    return encoding.ids if hasattr(encoding, "ids") else encoding


def run_batches(encode: Encode, batches: Batches, num_threads: int) -> None:
    """Encode all batches; results are let go, as the stage does."""
    if num_threads == 1:
        for batch in batches:
            encode(batch)
        return
    with ThreadPoolExecutor(num_threads) as threads:
        for future in [threads.submit(lambda batch: len(encode(batch).ids), batch) for batch in batches]:
            future.result()


def run_stage(corpus: Any, tokenizer: Any, run: Path, *, lookup: bool) -> None:
    """Write the token store anew."""
    from seedbed.data.store import TokensConfig, build_store

    with tempfile.TemporaryDirectory(dir=run) as folder:
        build_store(TokensConfig(), corpus, tokenizer, Path(folder), lookup=lookup)


def show(report: dict[str, Any]) -> None:
    """Print one tokenizer's table."""
    print(
        f"{report['tokenizer']}: {report['megabytes']} MB, {report['tokens']:,} tokens, {report['cores']} cores"
    )
    for name, rate in report["megabytes_per_second"].items():
        print(
            f"  {name:18} {rate:8.1f} MB/s  {report['ratio_to_encode_batch_warm'][name]:6.2f} x encode_batch warm"
        )
    differing = [name for name, same in report["same_ids"].items() if not same]
    print(f"  refuses this tokenizer, or gives other ids, so not timed: {', '.join(differing) or 'none'}")
    if report["stage_ratio"]:
        print(f"  the whole stage: {report['stage_ratio']:.2f} x the one that encodes every word")


if __name__ == "__main__":
    main()
