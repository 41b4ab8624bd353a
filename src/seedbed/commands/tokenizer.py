"""Learn a vocabulary from the training documents, or take an existing one, and report how well it fits the text."""

from __future__ import annotations

import argparse

from seedbed.commands.console import Console, add_recipe_arguments, read_recipe

EXAMPLES = "example:\n  seedbed tokenizer recipe.yaml tokenizer.algorithm=unigram tokenizer.vocab_size=16000"

add_arguments = add_recipe_arguments


def run(options: argparse.Namespace) -> int:
    """Run the corpus and tokenizer stages."""
    from seedbed.commands.stages import corpus_stage, stage_result, tokenizer_stage
    from seedbed.lock import owned

    recipe, console = read_recipe(options), Console(as_json=options.json)
    with owned(recipe.run_folder()):
        corpus = corpus_stage(recipe, console, strict=options.strict, replace=options.replace)
        artifact = tokenizer_stage(recipe, corpus, console, replace=options.replace)
    run_folder = recipe.run_folder()
    console.result(
        stage_result("tokenizer", artifact, run_folder),
        text=f"tokenizer: {run_folder / 'tokenizer'}\nnext: seedbed tokens {options.recipe}",
    )
    return 0
