"""Print a complete recipe with every key explained, or the JSON schema that editors complete recipes from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """examples:
  seedbed config > recipe.yaml                      every section, defaults and meanings
  seedbed config training                           one section
  seedbed config objective.name=causal_lm           the defaults of another choice
  seedbed config --recipe recipe.yaml               your recipe, everything filled in
  seedbed config --schema > recipe.schema.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="section | section.key=value",
        help="sections to print, overrides to apply",
    )
    parser.add_argument("--recipe", type=Path, help="start from this recipe instead of the defaults")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe")


def run(options: argparse.Namespace) -> int:
    """Print the recipe or its schema."""
    import difflib
    import json

    from seedbed.config import commented_yaml, json_schema, load_config
    from seedbed.errors import ConfigError
    from seedbed.recipe import Recipe

    if options.schema:
        sys.stdout.write(json.dumps(json_schema(Recipe), indent=1, ensure_ascii=False) + "\n")
        return 0
    recipe = load_config(Recipe, options.recipe, [word for word in options.words if "=" in word])
    sections = [word for word in options.words if "=" not in word]
    for section in sections:
        if section not in Recipe.model_fields:
            nearest = difflib.get_close_matches(section, Recipe.model_fields, n=1)
            raise ConfigError(
                f"there is no section {section!r}.",
                hint=f"did you mean {nearest[0]}?"
                if nearest
                else f"sections: {', '.join(Recipe.model_fields)}",
            )
    if not sections:
        sys.stdout.write(
            "# A seedbed recipe. Every key is optional; what you leave out has the value shown here.\n"
        )
    text = commented_yaml(recipe, only=sections or None)
    sys.stdout.write(text)
    return 0
