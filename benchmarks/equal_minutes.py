"""Train for the same minutes with the Hugging Face Trainer and with ours; compare the masked-LM loss on held-out text.

Both read the same tokens of the same text, in dense rows, as many rows a step, and are scored at the same stored targets (15 %
of the tokens, BERT's corruption) by the same code. Of each side the best rate of a short sweep trains for the full time. Theirs
is `Trainer` with its collator: BertForMaskedLM with its dropout, and ModernBertForMaskedLM, of our shape; linear decay, 5 %
warm-up, AdamW, bfloat16 where the processor has it. A product of matrices is timed before and after every arm: where arms of two
sides ran on a machine of another speed, the figures say so. Every finished arm is written at once and never repeated.

    python benchmarks/equal_minutes.py path/to/wiki-en.txt.gz runs/equal --minutes 10 --sweep-minutes 3
    python benchmarks/equal_minutes.py path/to/wiki-en.txt.gz runs/equal --sides modernbert --minutes 30 --rates 1e-3
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LENGTH = 128
SIDES = {
    "ours": ["model.name=modernbert"],
    "ours_native": ["model.name=native_encoder", "optim.name=normuon"],
    "bert": [],
    "modernbert": [],
}
RATES = {
    "ours": (5e-4, 1e-3, 2e-3),
    "ours_native": (4e-3, 8e-3),
    "bert": (3e-4, 1e-3, 2e-3),
    "modernbert": (5e-4, 1e-3, 2e-3),
}


def main() -> None:
    """Sweep, then train the best of each side, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="file or folder of text")
    parser.add_argument("out", type=Path, help="folder of the runs and results")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--sweep-minutes", type=float, default=3.0)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rates", type=float, nargs="+", help="instead of each side's own")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm is not None:
        print("RESULT " + json.dumps(train(options, **options.arm)))
        return
    for side in options.sides:
        rates = options.rates or RATES[side]
        swept = [arm(options, side, rate, options.sweep_minutes) for rate in rates] if len(rates) > 1 else []
        best = min(swept, key=lambda r: r["loss"])["rate"] if swept else rates[0]
        arm(options, side, best, options.minutes)
    print("\n" + table(load(options.out)))


def load(out: Path) -> dict[str, Any]:
    """Return the finished arms; each is a file of its own, so that two processes may fill one folder."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(out.glob("arms/*.json"))}


def arm(options: argparse.Namespace, side: str, rate: float, minutes: float) -> dict[str, Any]:
    """Run one arm in a process of its own, unless it is done."""
    file = options.out / "arms" / f"{side}-{rate:g}-{minutes:g}min.json"
    if file.exists():
        return json.loads(file.read_text())
    words = json.dumps({"side": side, "rate": rate, "minutes": minutes})
    command = [sys.executable, __file__, *sys.argv[1:], "--arm", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{file.stem} failed:\n{done.stderr[-3000:]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line.removeprefix("RESULT ") + "\n")
    result = json.loads(file.read_text())
    print(row(result), flush=True)
    return result


def recipe_of(options: argparse.Namespace, run: Path, *changes: str):
    """Return our recipe; the other side takes its text, its tokenizer and its shape from it."""
    from seedbed.config import load_config
    from seedbed.recipe import Recipe

    common = [
        f"run={run}",
        f'corpus.inputs=["{options.text}"]',
        f"tokenizer.vocab_size={options.vocab}",
        f"data.row_length={LENGTH}",
        f"training.batch_tokens={options.batch_tokens}",
        f"runtime.threads={options.threads}",
    ]
    return load_config(Recipe, None, [*common, f"model.preset={options.preset}", *changes])


def train(options: argparse.Namespace, *, side: str, rate: float, minutes: float) -> dict[str, Any]:
    """Train one arm and score it at the stored targets."""
    from dataclasses import replace

    if side.startswith("ours"):
        import seedbed  # noqa: F401  before torch, as the command does it: it settles how threads wait

    import torch

    from seedbed.commands.console import Console
    from seedbed.commands.pretraining import pretrain
    from seedbed.lock import owned
    from seedbed.runtime import prepare_process

    console = Console(as_json=True)
    base = recipe_of(options, options.out / "store")
    prepared = prepare_once(base, console)
    torch.set_num_threads(options.threads)
    speeds = [product_rate()]
    if side.startswith("ours"):
        run = options.out / f"{side}-{rate:g}-{minutes:g}"
        recipe = recipe_of(
            options,
            run,
            *SIDES[side],
            f"optim.learning_rate={rate}",
            f"training.budget_minutes={minutes}",
        )
        with owned(run):
            summary = pretrain(recipe, replace(prepared, run=run), console)
        result = {
            "loss": summary["valid"]["loss"],
            "accuracy": summary["valid"]["accuracy"],
            "steps": summary["steps"],
            "tokens": summary["tokens"],
            "train_seconds": summary["train_seconds"],
            "baselines": summary["baselines"],
        }
    else:
        prepare_process(base.runtime)
        result = train_theirs(options, base, prepared, side=side, rate=rate, minutes=minutes)
    speeds.append(product_rate())
    return {"side": side, "rate": rate, "minutes": minutes, **result, "gflops": [round(s) for s in speeds]}


def prepare_once(recipe, console):
    """Make the store, or take it as another process of this benchmark made it, which may still be at it."""
    from seedbed.commands.stages import prepare
    from seedbed.errors import LockedError
    from seedbed.lock import owned

    while True:
        try:
            with owned(recipe.run_folder()):
                return prepare(recipe, console)
        except LockedError:
            time.sleep(2)


def train_theirs(
    options: argparse.Namespace, recipe, prepared, *, side: str, rate: float, minutes: float
) -> dict[str, Any]:
    """Train with the Trainer for as many steps as a probe says the minutes hold."""
    import torch
    import transformers
    from train_speed import peer_model
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    from seedbed.data.store import TokenStore
    from seedbed.data.views import WindowView
    from seedbed.evaluation.intrinsic import build_evaluation_set, score
    from seedbed.models.huggingface import read_huggingface
    from seedbed.objectives.base import Vocabulary
    from seedbed.runtime import RuntimeConfig
    from seedbed.tokenizer.tokenizer import Tokenizer

    torch.use_deterministic_algorithms(False)  # as a user of theirs would run
    run, rows_per_step = options.out / "store", options.batch_tokens // LENGTH
    own = Tokenizer.load(run / "tokenizer")
    own.save(run / "hf-tokenizer", kind="encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "hf-tokenizer")
    store = TokenStore.open(run / "tokens")
    split = store.split("train")
    ids = torch.from_numpy(split.tokens(0, split.num_tokens // LENGTH * LENGTH).astype("int64"))
    rows = [
        {"input_ids": r, "attention_mask": torch.ones(LENGTH, dtype=torch.int64)}
        for r in ids.reshape(-1, LENGTH)
    ]
    objective = recipe.objective.build(Vocabulary.of(own), row_length=LENGTH, is_segmented=False)
    validation = build_evaluation_set(
        objective,
        WindowView(store.split("validation"), length=objective.raw_row_length, document_order_key=None),
        max_rows=recipe.training.validation_rows,
    )
    is_bf16 = RuntimeConfig().compute_dtype() == torch.bfloat16
    shape = recipe.model.build(vocab_size=own.vocab_size)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    def fit(steps: int, callbacks: list[TrainerCallback]):
        torch.manual_seed(0)
        model = peer_model(side, shape, own, 0.1, LENGTH)
        arguments = TrainingArguments(
            output_dir=str(options.out / "hf"),
            per_device_train_batch_size=rows_per_step,
            max_steps=steps,
            learning_rate=rate,
            warmup_steps=max(1, steps // 20),
            weight_decay=0.01,
            bf16=is_bf16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=callbacks)
        trainer.train()
        return model

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.perf_counter())

    fit(25, [Clock()])
    per_step = statistics.median([b - a for a, b in itertools.pairwise(times[4:])])
    steps = max(20, round(60 * minutes / per_step))
    curve: list[tuple[float, float]] = []
    out = {"seconds": 0.0, "began": 0.0}

    def judged(model) -> dict[str, float]:
        folder = options.out / "hf" / f"{side}-{rate:g}-{minutes:g}"
        model.save_pretrained(folder)
        read, _ = read_huggingface(folder)
        return score(objective, {"trunk": read.trunk, "head": read.head}, validation)

    class Curve(TrainerCallback):
        """Score ten times on the way; the clock stands still meanwhile."""

        def on_train_begin(self, args, state, control, **kwargs):
            out["began"] = time.perf_counter()

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step % max(1, steps // 10) == 0 and state.global_step < steps:
                out["seconds"] += time.perf_counter() - out["began"]
                curve.append((round(out["seconds"], 1), round(judged(model)["loss"], 4)))
                out["began"] = time.perf_counter()

        def on_train_end(self, args, state, control, **kwargs):
            out["seconds"] += time.perf_counter() - out["began"]

    scores = judged(fit(steps, [Curve()]))
    return {
        "loss": scores["loss"],
        "accuracy": scores["accuracy"],
        "steps": steps,
        "tokens": steps * options.batch_tokens,
        "train_seconds": out["seconds"],
        "curve": curve,
    }


def product_rate() -> float:
    """Return GFLOP/s of a bfloat16 product, the median of many: how fast the machine is now.

    Into memory that is there already: the allocator's settings, which differ by side, have no part in it.
    """
    import torch

    a, b = torch.randn(2048, 512).bfloat16(), torch.randn(512, 512).bfloat16()
    out = torch.empty(2048, 512, dtype=torch.bfloat16)
    seconds = []
    for _ in range(60):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * 2048 * 512 * 512 / statistics.median(seconds) / 1e9


def row(result: dict[str, Any]) -> str:
    """Return one line of the table."""
    speed = result["tokens"] / result["train_seconds"]
    cells = [result["side"], f"{result['rate']:g}", f"{result['train_seconds'] / 60:.1f}"]
    cells += [f"{result['tokens'] / 1e6:.2f} M", f"{speed:,.0f}", f"{result['loss']:.3f}"]
    return "| " + " | ".join([*cells, f"{result['accuracy']:.1%}", str(result["gflops"])]) + " |"


def table(results: dict[str, Any]) -> str:
    """Return all results as a table."""
    header = "| side | rate | minutes | tokens | tokens a second | held-out loss | accuracy | GFLOP/s before, after |"
    rows = sorted(results.values(), key=lambda r: (r["minutes"], r["loss"]))
    return "\n".join([header, "|---|---|---|---|---|---|---|---|", *map(row, rows)])


if __name__ == "__main__":
    main()
