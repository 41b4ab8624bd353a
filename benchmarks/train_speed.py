"""Compare a training run of ours with the Hugging Face Trainer: same model shape, tokenizer, text and machine.

Loading and masking are included on both sides, and real tokens are counted, never padding. Each side runs in processes of its
own, in turn, several times; printed are medians over the rounds of each side's median step, in tokens a second, and the ratio.
Nothing else should run on the machine.

    python benchmarks/train_speed.py --case lines --preset small --vocab 16384 --text TEXT     short documents, theirs padded
    python benchmarks/train_speed.py --case dense                                              dense rows on both sides
    python benchmarks/train_speed.py --case dense --equal                                      dropout 0, one allocator setting
    python benchmarks/train_speed.py --case causal --allocator                                 causal, rows of 512

`lines`: every document is a short text; theirs are cut and padded to the row length, as `run_mlm.py --line_by_line
--pad_to_max_length` does, ours packed. `dense`: both sides read full rows. Theirs has dropout 0.1 and glibc's allocator
settings unless told otherwise; `--allocator` gives both sides ours, `--equal` no dropout besides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One comparison: what is learned, in rows of how many tokens."""

    objective: str
    family: str
    length: int
    is_padded: bool = False


ENVIRONMENT = dict(os.environ)
"""As the user has it: importing seedbed settles how threads wait, and the other side must not inherit that."""

CASES = {
    "lines": Case("masked_lm", "bert", 128, is_padded=True),
    "dense": Case("masked_lm", "bert", 128),
    "dense_modernbert": Case("masked_lm", "modernbert", 128),
    "causal": Case("causal_lm", "gpt2", 512),
}


def main() -> None:
    """Run both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, default="dense")
    parser.add_argument("--text", default="demo", help="file or folder of text; demo: the bundled one")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--positions", type=int, default=8192, help="positions of a step, padding included")
    parser.add_argument("--steps", type=int, default=15, help="steps of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--allocator", action="store_true", help="our allocator settings on both sides")
    parser.add_argument(
        "--equal", action="store_true", help="dropout 0 and our allocator settings on both sides"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        result = (ours if options.side == "ours" else theirs)(options)
        print("RESULT " + json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.run = Path(folder) / "run"
        prepare_run(options)
        rounds: dict[str, list[dict]] = {"ours": [], "theirs": []}
        for number in range(options.rounds):
            for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
                rounds[side].append(in_process(side, options))
                print(
                    f"round {number + 1} {side}: {rounds[side][-1]['tokens_per_second']:,.0f} tokens/s",
                    file=sys.stderr,
                )
    summary = {
        side: statistics.median(r["tokens_per_second"] for r in results) for side, results in rounds.items()
    }
    names = ("torch", "transformers", "accelerate", "seedbed", "tokenizers")
    report = {
        "case": options.case,
        "ours": round(summary["ours"], 1),
        "theirs": round(summary["theirs"], 1),
        "ratio": round(summary["ours"] / summary["theirs"], 3),
        "ratios_by_round": [
            round(a["tokens_per_second"] / b["tokens_per_second"], 3)
            for a, b in zip(rounds["ours"], rounds["theirs"], strict=True)
        ],
        "of_ceiling": round(statistics.median(r["of_ceiling"] for r in rounds["ours"]), 3),
        "ceiling_gflops": round(statistics.median(r["ceiling_gflops"] for r in rounds["ours"]), 1),
        "settings": {"ours": rounds["ours"][0]["settings"], "theirs": rounds["theirs"][0]["settings"]},
        "shape": rounds["ours"][0]["shape"],
        "versions": {name: metadata.version(name) for name in names},
        "machine": rounds["ours"][0]["machine"],
    }
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(
            f"ours {report['ours']:,.0f} tokens/s, Hugging Face Trainer {report['theirs']:,.0f}, ratio {report['ratio']:.2f}"
        )
        print(
            f"our useful products reach {report['of_ceiling']:.1%} of {report['ceiling_gflops']:,.0f} GFLOP/s"
        )
        print(json.dumps(report["settings"], indent=1))


def in_process(side: str, options: argparse.Namespace) -> dict:
    """Run one side in a fresh process and return what it measured."""
    words = [sys.executable, __file__, "--side", side, "--run", str(options.run)]
    for name in ("case", "text", "preset", "vocab", "positions", "steps"):
        words += [f"--{name}", str(getattr(options, name))]
    words += [f"--{name}" for name in ("equal", "allocator") if getattr(options, name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("RESULT "))


def recipe_of(options: argparse.Namespace):
    """Return the recipe both sides stand on."""
    from seedbed.config import load_config
    from seedbed.corpus.bundled import bundled_corpus
    from seedbed.recipe import Recipe

    case = CASES[options.case]
    text = bundled_corpus("en") if options.text == "demo" else Path(options.text)
    changes = [
        f"run={options.run}",
        f'corpus.inputs=["{text}"]',
        f"corpus.documents={'line' if case.is_padded else 'blank_line'}",
        f"tokenizer.vocab_size={options.vocab}",
        f"model.name={case.family}",
        f"model.preset={options.preset}",
        f"objective.name={case.objective}",
        f"data.row_length={case.length}",
        f"training.batch_tokens={options.positions}",
        f"training.budget_steps={options.steps}",
    ]
    return load_config(Recipe, None, changes)


def prepare_run(options: argparse.Namespace) -> None:
    """Clean the text, learn the tokenizer, write the tokens: shared by both sides."""
    from seedbed.commands.console import Console
    from seedbed.commands.stages import prepare

    prepare(recipe_of(options), Console(as_json=True))


def ours(options: argparse.Namespace) -> dict:
    """Time our steps as `seedbed pretrain` runs them: rows read, masks drawn, forward, backward, clipping, update.

    Between them the matrix products of the model's own shapes run alone, forward, in the same number type: the ceiling.
    """
    from seedbed.commands.assembly import assemble, feed_of, run_window
    from seedbed.commands.console import Console
    from seedbed.commands.deciding import decide
    from seedbed.commands.stages import prepare
    from seedbed.runtime import describe_machine, prepare_process

    recipe = recipe_of(options)
    prepare_process(recipe.runtime)
    setting = assemble(recipe, prepare(recipe, Console(as_json=True)))
    plan = decide(recipe, setting, lambda: None)
    feed = feed_of(setting, plan)
    config = setting.model.config
    ceiling = Ceiling(config, options.positions, setting.compute_dtype)
    times, targets = [], []
    for _ in range(options.steps):
        ceiling.measure()
        began = time.perf_counter()
        result = run_window(setting, setting.state, recipe, feed)
        float(result.gradient_norm)
        setting.state.window += 1
        times.append(time.perf_counter() - began)
        targets.append(sum(result.counts.values()))
    step_seconds = statistics.median(times[3:])
    flops = useful_flops(config, options.positions, CASES[options.case].length, statistics.median(targets))
    return {
        "tokens_per_second": options.positions / step_seconds,
        "of_ceiling": flops / step_seconds / ceiling.flops_per_second(),
        "ceiling_gflops": ceiling.flops_per_second() / 1e9,
        "settings": {
            "precision": str(setting.compute_dtype).removeprefix("torch."),
            "dropout": config.hidden_dropout,
            "micro_batch_rows": plan.micro_batch_rows,
            "allocator": "glibc, mmap and trim thresholds raised",
            "optimizer": "fused AdamW, clipped",
        },
        "shape": {
            k: getattr(config, k)
            for k in ("num_layers", "hidden_size", "num_heads", "ffn_size", "vocab_size")
        },
        "machine": describe_machine(recipe.runtime),
    }


class Ceiling:
    """The best forward product among the shapes of a model, measured a little at a time between its steps."""

    def __init__(self, config, positions: int, dtype) -> None:
        import torch

        d, f = config.hidden_size, config.ffn_size
        self.pairs = [
            (torch.randn(positions, k).to(dtype), torch.randn(n, k).to(dtype))
            for k, n in ((d, 3 * d), (d, d), (d, f), (f, d))
        ]
        self.rates: list[list[float]] = [[] for _ in self.pairs]

    def measure(self) -> None:
        """Run every product twice; the first time warms the caches."""
        import torch

        with torch.no_grad():
            for rates, (x, w) in zip(self.rates, self.pairs, strict=True):
                for _ in range(2):
                    began = time.perf_counter()
                    torch.nn.functional.linear(x, w)
                    seconds = time.perf_counter() - began
                rates.append(2 * x.numel() * len(w) / seconds)

    def flops_per_second(self) -> float:
        """Return the median rate of the fastest shape."""
        return max(statistics.median(rates) for rates in self.rates)


def useful_flops(config, positions: int, length: int, targets: float) -> float:
    """Return the floating-point operations of a step that its result needs: the head, and the last layer, only where predicted.

    Forward and twice that backward; products only. A last layer's keys and values are needed everywhere.
    """
    d, f, n = config.hidden_size, config.ffn_size, config.num_layers
    width = config.num_heads * config.head_dim
    gates = 3 if config.is_gated else 2
    pairs = length / (2 if config.is_causal else 1)
    whole = 2 * (4 * d * width + gates * d * f) + 4 * pairs * width
    answered = min(targets, positions)
    last = positions * 2 * 2 * d * width + answered * (
        2 * (2 * d * width + gates * d * f) + 4 * pairs * width
    )
    head = answered * 2 * (d * config.vocab_size + (d * d if not config.is_causal else 0))
    return 3 * (positions * (n - 1) * whole + last + head)


def theirs(options: argparse.Namespace) -> dict:
    """Time the Trainer on the same text, with its collator and its default optimizer."""
    import torch
    import transformers
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    from seedbed.recipe import Recipe
    from seedbed.runtime import RuntimeConfig, tune_allocator
    from seedbed.tokenizer.tokenizer import Tokenizer

    case = CASES[options.case]
    recipe: Recipe = recipe_of(options)
    runtime = RuntimeConfig()
    torch.set_num_threads(runtime.num_threads())
    if options.equal or options.allocator:
        tune_allocator()
    own = Tokenizer.load(options.run / "tokenizer")
    kind = "decoder" if case.objective == "causal_lm" else "encoder"
    own.save(options.run / "hf-tokenizer", kind=kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.run / "hf-tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    dropout = 0.0 if options.equal or case.family == "modernbert" else 0.1
    model = peer_model(
        case.family, recipe.model.build(vocab_size=own.vocab_size), own, dropout, recipe.data.row_length
    )
    rows = (
        padded_rows(options, tokenizer, case.length) if case.is_padded else dense_rows(options, case.length)
    )
    rows_per_step = options.positions // case.length
    collate = DataCollatorForLanguageModeling(
        tokenizer, mlm=case.objective == "masked_lm", mlm_probability=0.15
    )
    real: list[int] = []

    def collator(examples):
        batch = collate(examples)
        real.append(int(batch["attention_mask"].sum()))
        return batch

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.perf_counter())

    is_bf16 = runtime.compute_dtype() == torch.bfloat16
    arguments = TrainingArguments(
        output_dir=str(options.run / "hf"),
        per_device_train_batch_size=rows_per_step,
        max_steps=options.steps + 1,
        learning_rate=1e-3,
        bf16=is_bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[Clock()]).train()
    steps = [b - a for a, b in itertools.pairwise(times)]
    return {
        "tokens_per_second": statistics.mean(real) / statistics.median(steps[3:]),
        "settings": {
            "precision": "bfloat16 (autocast)" if is_bf16 else "float32",
            "dropout": dropout,
            "allocator": "glibc, mmap and trim thresholds raised"
            if options.equal or options.allocator
            else "glibc defaults",
            "optimizer": f"{arguments.optim.value}, clipped at {arguments.max_grad_norm}",
            "model": type(model).__name__,
            "attention": getattr(model.config, "_attn_implementation", ""),
            "real_share": round(statistics.mean(real) / options.positions, 3),
        },
    }


def peer_model(family: str, shape, tokenizer, dropout: float, length: int):
    """Return a fresh model of Hugging Face's with our shape."""
    import transformers

    common = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.ffn_size,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_id,
    }
    if family == "bert":
        config = transformers.BertConfig(
            **common, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
        )
        return transformers.BertForMaskedLM(config)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=tokenizer.vocab_size,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_inner=shape.ffn_size,
            n_positions=512,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=tokenizer.separator_id,
            eos_token_id=tokenizer.separator_id,
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.ModernBertConfig(
        **common,
        global_attn_every_n_layers=1,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    return transformers.ModernBertForMaskedLM(config)


def dense_rows(options: argparse.Namespace, length: int) -> list[dict]:
    """Return full rows cut from the tokens."""
    import torch

    from seedbed.data.store import TokenStore

    split = TokenStore.open(options.run / "tokens").split("train")
    ids = torch.from_numpy(split.tokens(0, (split.num_tokens // length) * length).astype("int64"))
    return [
        {"input_ids": row, "attention_mask": torch.ones(length, dtype=torch.int64)}
        for row in ids.reshape(-1, length)
    ]


def padded_rows(options: argparse.Namespace, tokenizer, length: int) -> list[dict]:
    """Return the documents one by one, cut and padded to the row length."""
    from seedbed.artifact import open_verified
    from seedbed.corpus.pipeline import iter_documents

    corpus = open_verified(options.run / "corpus")
    documents = itertools.islice(
        iter_documents(corpus, "train"), (options.steps + 2) * options.positions // length
    )
    texts = [document.text for document in documents]
    encoded = tokenizer(texts, truncation=True, max_length=length, padding="max_length")
    return [
        {"input_ids": ids, "attention_mask": seen}
        for ids, seen in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]


if __name__ == "__main__":
    main()
