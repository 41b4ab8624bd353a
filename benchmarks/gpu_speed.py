"""Measure a training step on one GPU: how much of the card's measured matrix rate it reaches, beside the Hugging Face Trainer.

BERT-base (masked LM, rows of 512) and GPT-2 124M (causal LM, rows of 1,024) with vocabularies of 30,522 and 50,257, on text of
random words: speed does not depend on what is read. Each side runs in a process of its own, in turn, several rounds; a round
times the steps after the first ones as a whole, loading included, and nothing is read from the device but what a run reads.
The ceiling is measured in the same call: bf16 products of the model's own shapes, the best of interleaved repeats, weighted by
how much of a step they are. Utilisation counts useful work only, the same for both sides: forward and backward products of the
layers, attention within the rows (half of it where it is causal), and the head at the places that are predicted.

    python benchmarks/gpu_speed.py                             both models, defaults on both sides
    python benchmarks/gpu_speed.py --equal --json              dropout 0 and torch.compile on both sides
    python benchmarks/gpu_speed.py --device cpu --preset tiny --steps 3 --rounds 1 --sides ours      does it run?

Exit code 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One model and its rows."""

    family: str
    objective: str
    row_length: int
    vocab_size: int
    is_causal: bool
    predicted: float  # share of positions whose logits are needed


CASES = {
    "bert": Case("bert", "masked_lm", 512, 30_522, False, 0.15),
    "gpt2": Case("gpt2", "causal_lm", 1024, 50_257, True, 1.0),
}
WARMUP = 4  # steps before the clock starts: compiling, allocating, choosing kernels


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", choices=tuple(CASES), default=list(CASES))
    made.add_argument("--preset", default="base", help="size of both models")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--rows", type=int, default=0, help="rows of a step; 0: 32,768 tokens")
    made.add_argument("--row-length", type=int, default=0, help="0: the model's own")
    made.add_argument("--vocab-size", type=int, default=0, help="0: the model's own")
    made.add_argument("--steps", type=int, default=30, help=f"timed steps of a round, after {WARMUP} others")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--sides", nargs="+", choices=("ours", "theirs"), default=["ours", "theirs"])
    made.add_argument("--equal", action="store_true", help="dropout 0 and torch.compile on both sides")
    made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of our recipe")
    made.add_argument("--json", action="store_true")
    made.add_argument("--side", choices=("ours", "theirs", "ceiling"), help=argparse.SUPPRESS)
    made.add_argument("--model", choices=tuple(CASES), help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return made


def main(words: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = parser().parse_args(words)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu_speed: torch sees no GPU here; --device cpu --preset tiny shows that it runs.",
            file=sys.stderr,
        )
        return 2
    if options.side:
        measure = {"ours": ours, "theirs": theirs, "ceiling": ceiling}[options.side]
        print("RESULT " + json.dumps(measure(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        reports = {name: compare(name, options) for name in options.models}
    if options.json:
        print(json.dumps(reports, indent=1))
    else:
        print("\n".join(line for name, report in reports.items() for line in lines_of(name, report)))
    return 0


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one model: the ceiling, then both sides in turn."""
    options.model = name
    prepare_run(options)
    top = in_process("ceiling", options)
    rounds: dict[str, list[dict]] = {side: [] for side in options.sides}
    for number in range(options.rounds):
        for side in options.sides if number % 2 == 0 else reversed(options.sides):
            rounds[side].append(in_process(side, options))
            rate = rounds[side][-1]["tokens_per_second"]
            print(f"{name}, round {number + 1} {side}: {rate:,.0f} tokens/s", file=sys.stderr)
    work = top["flops_per_token"]
    report: dict[str, Any] = {"ceiling": top}
    for side, results in rounds.items():
        rate = statistics.median(r["tokens_per_second"] for r in results)
        report[side] = {
            "tokens_per_second": round(rate, 1),
            "utilisation": round(rate * work / (top["teraflops"] * 1e12), 4),
            "peak_gib": max(r["peak_gib"] for r in results),
            "settings": results[0]["settings"],
            "rounds": [round(r["tokens_per_second"], 1) for r in results],
        }
    if len(rounds) == 2:
        report["ratio"] = round(
            report["ours"]["tokens_per_second"] / report["theirs"]["tokens_per_second"], 3
        )
        report["ratios_by_round"] = [
            round(a["tokens_per_second"] / b["tokens_per_second"], 3)
            for a, b in zip(rounds["ours"], rounds["theirs"], strict=True)
        ]
    names = ("torch", "seedbed", *(("transformers", "accelerate") if "theirs" in rounds else ()))
    report["versions"] = {name: metadata.version(name) for name in names}
    return report


def lines_of(name: str, report: dict[str, Any]) -> list[str]:
    """Return a report for people."""
    top = report["ceiling"]
    lines = [
        f"{name} on {top['device']}: products of its shapes reach {top['teraflops']:.1f} TFLOP/s in bf16"
    ]
    for side in ("ours", "theirs"):
        if side in report:
            own = report[side]
            lines.append(
                f"  {side:<7} {own['tokens_per_second']:>12,.0f} tokens/s  utilisation {own['utilisation']:.1%}"
                f"  peak {own['peak_gib']:.1f} GiB"
            )
    if "ratio" in report:
        lines.append(f"  ratio   {report['ratio']:.2f} (by round {report['ratios_by_round']})")
    return lines


def in_process(side: str, options: argparse.Namespace) -> dict:
    """Run one measurement in a fresh process and return it."""
    words = [sys.executable, __file__, "--side", side, "--model", options.model]
    words += ["--folder", str(options.folder), "--preset", options.preset, "--device", options.device]
    for key in ("rows", "row_length", "vocab_size", "steps"):
        words += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    words += [*(["--equal"] if options.equal else []), *(["--set", *options.set] if options.set else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("RESULT "))


def shape_of(options: argparse.Namespace) -> tuple[Case, int, int, int]:
    """Return the case, its rows a step, their length, and the vocabulary."""
    case = CASES[options.model]
    length = options.row_length or case.row_length
    return case, options.rows or max(1, 32_768 // length), length, options.vocab_size or case.vocab_size


def recipe_of(options: argparse.Namespace):
    """Return our recipe."""
    from seedbed.config import load_config
    from seedbed.recipe import Recipe

    case, rows, length, _ = shape_of(options)
    run = options.folder / options.model
    changes = [
        f"run={run}",
        f'corpus.inputs=["{run}.txt"]',
        f"tokenizer.path={run}-vocab.txt",
        f"model.name={case.family}",
        f"model.preset={options.preset}",
        f"model.max_length={length}",
        f"objective.name={case.objective}",
        f"data.row_length={length}",
        f"training.batch_tokens={rows * length}",
        f"training.micro_batch_rows={rows}",  # as the Trainer: a step is one pass
        f"training.budget_steps={options.steps + WARMUP + 1}",
        f"runtime.device={options.device}",
    ]
    return load_config(Recipe, None, changes + list(options.set))


def prepare_run(options: argparse.Namespace) -> None:
    """Write a vocabulary of words, text of them, and its tokens: shared by both sides."""
    from seedbed.commands.console import Console
    from seedbed.commands.stages import prepare

    _, rows, length, vocab_size = shape_of(options)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word_of(number) for number in range(vocab_size - len(special))]
    run = options.folder / options.model
    Path(f"{run}-vocab.txt").write_text("\n".join(special + words) + "\n", encoding="utf-8")
    chance = random.Random(0)
    with Path(f"{run}.txt").open("w", encoding="utf-8") as file:
        for _ in range(max(60, 8 * rows * length // 1000)):  # documents of a thousand words
            # The lower the number the commoner: about 1 / n, as in any language.
            own = [words[int(len(words) ** chance.random()) - 1] for _ in range(1000)]
            file.write("\n".join(" ".join(own[at : at + 20]) for at in range(0, 1000, 20)) + "\n\n")
    prepare(recipe_of(options), Console(as_json=True))


def word_of(number: int) -> str:
    """Return the word of a number, from letters."""
    letters = ""
    while True:
        number, digit = divmod(number, 26)
        letters += chr(97 + digit)
        if not number:
            return "w" + letters
        number -= 1


def device_name(options: argparse.Namespace) -> str:
    """Return what computes."""
    import torch

    return torch.cuda.get_device_name() if options.device == "cuda" else "the CPU"


def wait(options: argparse.Namespace) -> None:
    """Wait until everything queued is done."""
    import torch

    if options.device == "cuda":
        torch.cuda.synchronize()


def peak_gib(options: argparse.Namespace) -> float:
    """Return the most memory taken, GiB: of the device, or of the process."""
    import resource

    import torch

    if options.device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def products_of(config: Any, case: Case, rows: int, length: int) -> dict[tuple[int, int, int], float]:
    """Return how often a step's forward pass multiplies (M, K) by (K, N), by shape."""
    tokens, hidden, wide = rows * length, config.hidden_size, config.ffn_size
    return {
        (tokens, hidden, 3 * hidden): config.num_layers,
        (tokens, hidden, hidden): config.num_layers,
        (tokens, hidden, wide): config.num_layers,
        (tokens, wide, hidden): config.num_layers,
        (max(1, round(case.predicted * tokens)), hidden, config.vocab_size): 1,
    }


def flops_per_token(config: Any, case: Case, rows: int, length: int) -> float:
    """Return the useful operations of a step, forward and backward, for each token of the rows."""
    forward = sum(
        2 * m * k * n * times for (m, k, n), times in products_of(config, case, rows, length).items()
    )
    attention = 4 * rows * length * length * config.hidden_size * config.num_layers
    return 3 * (forward + attention * (0.5 if case.is_causal else 1.0)) / (rows * length)


def ceiling(options: argparse.Namespace) -> dict:
    """Measure the best rate of the model's own products in bf16: forward, and the two of the backward pass."""
    import torch

    case, rows, length, vocab_size = shape_of(options)
    config = recipe_of(options).model.build(vocab_size=vocab_size)
    work = products_of(config, case, rows, length)
    repeats = 20 if options.device == "cuda" else 1
    best: dict[tuple[int, int, int], float] = {}
    pairs = {}
    for m, k, n in work:
        x, w, g = (
            torch.randn(*size, device=options.device, dtype=torch.bfloat16)
            for size in ((m, k), (k, n), (m, n))
        )
        pairs[m, k, n] = x, w, g
    for number in range(4 if options.device == "cuda" else 2):
        for shape, (x, w, g) in pairs.items():  # in turn, so that heat and clocks touch all alike
            wait(options)
            began = time.perf_counter()
            for _ in range(repeats):
                x @ w
                g @ w.T
                x.T @ g
            wait(options)
            seconds = (time.perf_counter() - began) / repeats
            if number:
                best[shape] = min(best.get(shape, seconds), seconds)
    total = sum(6 * m * k * n * work[m, k, n] for m, k, n in work)
    seconds = sum(best[shape] * times for shape, times in work.items())
    return {
        "device": device_name(options),
        "teraflops": round(total / seconds / 1e12, 3),
        "by_shape": {f"{m}x{k}x{n}": round(6 * m * k * n / best[m, k, n] / 1e12, 3) for m, k, n in work},
        "flops_per_token": flops_per_token(config, case, rows, length),
    }


def ours(options: argparse.Namespace) -> dict:
    """Time our steps as `seedbed pretrain` runs them: rows made ahead, numbers read one step late."""
    from seedbed.commands.assembly import assemble, feed_of, run_window
    from seedbed.commands.console import Console
    from seedbed.commands.stages import prepare
    from seedbed.runtime import describe_machine, prepare_process
    from seedbed.training.ahead import made_ahead
    from seedbed.training.budget import Plan
    from seedbed.training.late import LateNumbers

    _, rows, length, _ = shape_of(options)
    recipe = recipe_of(options)
    prepare_process(recipe.runtime)
    setting = assemble(recipe, prepare(recipe, Console(as_json=True)))
    feed = feed_of(setting, Plan(options.steps + WARMUP, rows, recipe.training.micro_batch_rows, 0.0, ""))
    unread, losses, began = None, [], 0.0
    with made_ahead(feed, setting.device) as windows:
        for number in range(options.steps + WARMUP):
            if number == WARMUP:
                wait(options)
                began = time.perf_counter()
            result = run_window(setting, setting.state, recipe, windows)
            setting.state.window += 1
            if unread is not None:
                losses += unread.read().losses.values()
            unread = LateNumbers(result)
        assert unread is not None
        losses += unread.read().losses.values()
        wait(options)
        seconds = time.perf_counter() - began
    machine = describe_machine(recipe.runtime)
    return {
        "tokens_per_second": options.steps * rows * length / seconds,
        "peak_gib": peak_gib(options),
        "losses": [losses[0], losses[-1]],
        "settings": {
            "precision": machine["precision"],
            "compile": machine.get("compile", False),
            "attention": machine.get("attention", "sdpa"),
            "dropout": setting.model.config.hidden_dropout,
            "optimizer": recipe.optim.name,
            "rows": f"{rows} x {length}",
        },
    }


def theirs(options: argparse.Namespace) -> dict:
    """Time the Trainer on the same rows, with its collator and its default optimizer."""
    import torch
    import transformers
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    from seedbed.data.store import TokenStore
    from seedbed.tokenizer.tokenizer import Tokenizer

    case, rows, length, _ = shape_of(options)
    run = options.folder / options.model
    own = Tokenizer.load(run / "tokenizer")
    own.save(run / "hf-tokenizer", kind="encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "hf-tokenizer")
    shape = recipe_of(options).model.build(vocab_size=own.vocab_size)
    dropout = 0.0 if options.equal else 0.1
    if case.family == "bert":
        config = transformers.BertConfig(
            vocab_size=own.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=shape.ffn_size,
            max_position_embeddings=length,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        model = transformers.BertForMaskedLM(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=own.vocab_size,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_inner=shape.ffn_size,
            n_positions=length,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
        model = transformers.GPT2LMHeadModel(config)
    split = TokenStore.open(run / "tokens").split("train")
    ids = torch.from_numpy(split.tokens(0, (split.num_tokens // length) * length).astype("int64"))
    data = [{"input_ids": row} for row in ids.reshape(-1, length)]
    clock: dict[str, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARMUP, WARMUP + options.steps):
                wait(options)
                clock["began" if state.global_step == WARMUP else "ended"] = time.perf_counter()

    arguments = TrainingArguments(
        output_dir=str(run / "hf"),
        per_device_train_batch_size=rows,
        max_steps=options.steps + WARMUP,
        learning_rate=1e-4,
        bf16=True,
        torch_compile=options.equal and options.device == "cuda",
        use_cpu=options.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=not case.is_causal)
    Trainer(model, arguments, train_dataset=data, data_collator=collator, callbacks=[Clock()]).train()
    return {
        "tokens_per_second": options.steps * rows * length / (clock["ended"] - clock["began"]),
        "peak_gib": peak_gib(options),
        "settings": {
            "precision": "bfloat16 (autocast)",
            "compile": bool(arguments.torch_compile),
            "attention": getattr(model.config, "_attn_implementation", ""),
            "dropout": dropout,
            "optimizer": arguments.optim.value,
            "model": type(model).__name__,
            "rows": f"{rows} x {length}",
        },
    }


if __name__ == "__main__":
    sys.exit(main())
