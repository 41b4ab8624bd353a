"""Run every stage of a recipe that is not up to date: corpus, tokenizer, tokens, pretrain, and write the report."""

from __future__ import annotations

from seedbed.commands.pretrain import add_arguments, run

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = """example:
  seedbed run recipe.yaml
  seedbed run recipe.yaml training.budget_minutes=20 run=runs/longer"""
