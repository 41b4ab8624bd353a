"""Clean a corpus: read, normalise, drop exact duplicates, split. Bad lines are listed with file and line, good ones kept."""

from __future__ import annotations

import argparse

from seedbed.commands.console import Console, add_recipe_arguments, read_recipe

EXAMPLES = "example:\n  seedbed corpus recipe.yaml corpus.validation_fraction=0.02"

add_arguments = add_recipe_arguments


def run(options: argparse.Namespace) -> int:
    """Run the corpus stage."""
    from seedbed.commands.stages import corpus_stage, stage_result
    from seedbed.lock import owned

    recipe, console = read_recipe(options), Console(as_json=options.json)
    with owned(recipe.run_folder()):
        artifact = corpus_stage(recipe, console, strict=options.strict, replace=options.replace)
    run_folder = recipe.run_folder()
    console.result(
        stage_result("corpus", artifact, run_folder),
        text=f"clean documents: {run_folder / 'corpus'}\nnext: seedbed tokenizer {options.recipe}",
    )
    return 0
