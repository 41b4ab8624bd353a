"""The command line: a table of verbs, loaded when one is used, so that `seedbed --help` is instant."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from seedbed import __version__
from seedbed.errors import SeedbedError
from seedbed.runtime import prepare_environment

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("seedbed.commands.demo", "the whole journey on a bundled corpus, in minutes, on a CPU"),
    "run": ("seedbed.commands.run", "every stage of a recipe that is not up to date"),
    "corpus": ("seedbed.commands.corpus", "raw text to clean documents"),
    "tokenizer": ("seedbed.commands.tokenizer", "documents to a vocabulary"),
    "tokens": ("seedbed.commands.tokens", "documents to the token store"),
    "pretrain": ("seedbed.commands.pretrain", "the token store to a model; the same command resumes"),
    "prove": (
        "seedbed.commands.prove",
        "show on your own recipe that stopping, killing and the number of workers change nothing",
    ),
    "compare": (
        "seedbed.commands.compare",
        "strategies, or any parts of a recipe, at equal cost: which is better, and how sure",
    ),
    "search": (
        "seedbed.commands.search",
        "keys of a recipe for the lowest loss at equal cost, against its own values",
    ),
    "plan": (
        "seedbed.commands.plan",
        "which size, how many passes, which loss: a forecast from small probes",
    ),
    "find-rate": ("seedbed.commands.find_rate", "try learning rates over a short sweep, and draw the losses"),
    "evaluate": (
        "seedbed.commands.evaluate",
        "loss, perplexity, accuracy and bits per byte beside the corpus's own floors",
    ),
    "minimal-pairs": (
        "seedbed.commands.minimal_pairs",
        "share of sentence pairs (BLiMP layout) whose acceptable one is likelier",
    ),
    "similarity": (
        "seedbed.commands.similarity",
        "rank correlation of a model's sentence vectors with people's scores (STS)",
    ),
    "finetune": ("seedbed.commands.finetune", "teach a model a task of labelled texts; several seeds"),
    "fill-mask": ("seedbed.commands.fill_mask", "let a masked model complete a text"),
    "generate": ("seedbed.commands.generate", "let a causal model continue a text"),
    "report": ("seedbed.commands.report", "write a run's report.html"),
    "strategies": (
        "seedbed.commands.strategies",
        "the objectives: what each needs, which models it trains, its source",
    ),
    "config": ("seedbed.commands.config", "print a complete recipe with every key explained"),
    "env": ("seedbed.commands.env", "print what a bug report needs"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (errors.py lists them)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # Torch's DDP keeps gloo's threads beyond destroy_process_group, and the interpreter's end then aborts now and then
            # (6 of 26 runs on torch 2.13): a worker of several leaves without it.
            sys.stderr.flush()
            os._exit(code)
        return code
    except BrokenPipeError:  # the reader of our output went away; that is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"seedbed {__version__}\n")
        return 0
    verb = words[0]
    if verb not in COMMANDS:
        return _unknown(verb)
    prepare_environment()
    module = importlib.import_module(COMMANDS[verb][0])
    parser = _parser(verb, module)
    try:
        # Options may stand between a recipe and its overrides.
        options = parser.parse_intermixed_args(words[1:])
        options.verb = verb
    except SystemExit as error:
        return int(error.code or 0)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        return int(module.run(options) or 0)
    except SeedbedError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint:  {error.hint}\n" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
    except BrokenPipeError:
        raise
    except MemoryError:
        sys.stderr.write(
            "error: out of memory.\nhint:  lower training.micro_batch_rows or choose a smaller preset\n"
        )
        return 4
    except Exception:  # the one place that catches everything: our own bug, told as such
        traceback.print_exc()
        sys.stderr.write(
            "error: this is a bug in seedbed. Please report it with the lines above and `seedbed env`.\n"
        )
        return 1


def _parser(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"seedbed {verb}",
        description=module.__doc__,
        epilog=getattr(module, "EXAMPLES", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in COMMANDS.items()]
    return (
        "seedbed: pretrain a language model on your own text\n\n"
        "usage: seedbed COMMAND [options]        seedbed COMMAND --help explains one\n\n"
        + "\n".join(lines)
        + "\n\nStart with:  seedbed demo\nThen:        seedbed config > recipe.yaml, name your text, seedbed run recipe.yaml\n"
    )


def _unknown(verb: str) -> int:
    import difflib

    nearest = difflib.get_close_matches(verb, COMMANDS, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}?" if nearest else "seedbed --help lists the commands"
    sys.stderr.write(f"error: there is no command {verb!r}.\nhint:  {hint}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
