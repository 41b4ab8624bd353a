"""Run every stage of a recipe that is not up to date: corpus, tokenizer, tokens, pretrain, and write the report."""

from __future__ import annotations

from seedbed.commands.console import add_recipe_arguments
from seedbed.commands.pretrain import run

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = """example:
  seedbed run recipe.yaml
  seedbed run recipe.yaml training.budget_minutes=20 run=runs/longer"""

add_arguments = add_recipe_arguments
