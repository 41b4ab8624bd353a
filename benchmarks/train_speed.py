"""Compare a training run of ours with the Hugging Face Trainer: same model shape, tokenizer, text and machine.

Both sides train masked language modelling on dense rows of 128 tokens, 64 rows a step, data loading and masking
included. They run in processes of their own, in turn, several times; printed are medians over the rounds of each
side's median step, in real tokens a second, and the ratio. Nothing else should run on the machine.

    python benchmarks/train_speed.py --text demo                 both as a user gets them by default
    python benchmarks/train_speed.py --text demo --equal         dropout 0 and the same allocator settings on both
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROWS, LENGTH = 64, 128


def main() -> None:
    """Run both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", default="demo", help="file or folder of text; demo: the bundled English corpus"
    )
    parser.add_argument("--family", choices=("bert", "modernbert"), default="bert")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--steps", type=int, default=25, help="steps of one round")
    parser.add_argument("--rounds", type=int, default=3)
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
        "ours": round(summary["ours"], 1),
        "theirs": round(summary["theirs"], 1),
        "ratio": round(summary["ours"] / summary["theirs"], 3),
        "ratios_by_round": [
            round(a["tokens_per_second"] / b["tokens_per_second"], 3)
            for a, b in zip(rounds["ours"], rounds["theirs"], strict=True)
        ],
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
        print(json.dumps(report["settings"], indent=1))


def in_process(side: str, options: argparse.Namespace) -> dict:
    """Run one side in a fresh process and return what it measured."""
    words = [sys.executable, __file__, "--side", side, "--run", str(options.run), "--family", options.family]
    words += [
        "--preset",
        options.preset,
        "--steps",
        str(options.steps),
        *(["--equal"] if options.equal else []),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("RESULT "))


def recipe_of(options: argparse.Namespace):
    """Return the recipe both sides stand on."""
    from seedbed.config import load_config
    from seedbed.corpus.bundled import bundled_corpus
    from seedbed.recipe import Recipe

    text = bundled_corpus("en") if options.text == "demo" else Path(options.text)
    return load_config(
        Recipe,
        None,
        [
            f"run={options.run}",
            f'corpus.inputs=["{text}"]',
            f"model.name={options.family}",
            f"model.preset={options.preset}",
            f"data.row_length={LENGTH}",
            f"training.batch_tokens={ROWS * LENGTH}",
            f"training.budget_steps={options.steps}",
        ],
    )


def prepare_run(options: argparse.Namespace) -> None:
    """Clean the text, learn the tokenizer, write the tokens: shared by both sides."""
    from seedbed.commands.console import Console
    from seedbed.commands.stages import prepare

    prepare(recipe_of(options), Console(as_json=True))


def median_rate(times: list[float]) -> float:
    """Return tokens a second from the median step, the first three left out."""
    return ROWS * LENGTH / statistics.median(times[3:])


def ours(options: argparse.Namespace) -> dict:
    """Time our steps as `seedbed pretrain` runs them: rows read, masks drawn, forward, backward, clipping, update."""
    from seedbed.commands.assembly import assemble, decide, feed_of, run_window
    from seedbed.commands.console import Console
    from seedbed.commands.stages import prepare
    from seedbed.runtime import describe_machine, prepare_process

    recipe = recipe_of(options)
    prepare_process(recipe.runtime)
    setting = assemble(recipe, prepare(recipe, Console(as_json=True)))
    plan = decide(recipe, setting, lambda: None)
    feed = feed_of(setting, plan)
    times = []
    for _ in range(options.steps):
        began = time.perf_counter()
        result = run_window(setting, setting.state, recipe, feed)
        float(result.gradient_norm)
        setting.state.window += 1
        times.append(time.perf_counter() - began)
    config = setting.model.config
    return {
        "tokens_per_second": median_rate(times),
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


def theirs(options: argparse.Namespace) -> dict:
    """Time the Trainer on the same rows, with its collator and its default optimizer."""
    import torch
    import transformers
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    from seedbed.data.store import TokenStore
    from seedbed.recipe import Recipe
    from seedbed.runtime import RuntimeConfig, tune_allocator
    from seedbed.tokenizer.tokenizer import Tokenizer

    recipe: Recipe = recipe_of(options)
    runtime = RuntimeConfig()
    torch.set_num_threads(runtime.num_threads())
    if options.equal:
        tune_allocator()
    own = Tokenizer.load(options.run / "tokenizer")
    own.save(options.run / "hf-tokenizer", kind="encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.run / "hf-tokenizer")
    shape = recipe.model.build(vocab_size=own.vocab_size)
    common = {
        "vocab_size": own.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.ffn_size,
        "max_position_embeddings": 512,
        "pad_token_id": own.pad_id,
    }
    if options.family == "bert":
        dropout = 0.0 if options.equal else 0.1
        config = transformers.BertConfig(
            **common, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
        )
        model = transformers.BertForMaskedLM(config)
    else:
        dropout = 0.0
        config = transformers.ModernBertConfig(
            **common,
            global_attn_every_n_layers=1,
            bos_token_id=2,
            eos_token_id=3,
            cls_token_id=2,
            sep_token_id=3,
        )
        model = transformers.ModernBertForMaskedLM(config)
    split = TokenStore.open(options.run / "tokens").split("train")
    ids = torch.from_numpy(split.tokens(0, (split.num_tokens // LENGTH) * LENGTH).astype("int64")).reshape(
        -1, LENGTH
    )
    rows = [{"input_ids": row, "attention_mask": torch.ones(LENGTH, dtype=torch.int64)} for row in ids]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.perf_counter())

    is_bf16 = runtime.compute_dtype() == torch.bfloat16
    arguments = TrainingArguments(
        output_dir=str(options.run / "hf"),
        per_device_train_batch_size=ROWS,
        max_steps=options.steps + 1,
        learning_rate=1e-3,
        bf16=is_bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[Clock()]).train()
    return {
        "tokens_per_second": median_rate([b - a for a, b in itertools.pairwise(times)]),
        "settings": {
            "precision": "bfloat16 (autocast)" if is_bf16 else "float32",
            "dropout": dropout,
            "allocator": "glibc, mmap and trim thresholds raised" if options.equal else "glibc defaults",
            "optimizer": f"{arguments.optim.value}, clipped at {arguments.max_grad_norm}",
            "model": type(model).__name__,
            "attention": getattr(model.config, "_attn_implementation", ""),
        },
    }


if __name__ == "__main__":
    main()
