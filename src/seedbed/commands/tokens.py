"""Write the token store: ids with document, sentence and word marks, read by every objective."""

from __future__ import annotations

import argparse

from seedbed.commands.console import Console, add_recipe_arguments, read_recipe

EXAMPLES = "example:\n  seedbed tokens recipe.yaml"

add_arguments = add_recipe_arguments


def run(options: argparse.Namespace) -> int:
    """Run the stages up to the token store."""
    from seedbed.commands.stages import prepare, stage_result
    from seedbed.lock import owned

    recipe, console = read_recipe(options), Console(as_json=options.json)
    with owned(recipe.run_folder()):
        prepared = prepare(recipe, console, strict=options.strict, replace=options.replace)
    console.result(
        stage_result("tokens", prepared.tokens, prepared.run),
        text=f"token store: {prepared.run / 'tokens'}\nnext: seedbed pretrain {options.recipe}",
    )
    return 0
