"""Tasks: the files people have, read as labelled examples. No torch here."""

from __future__ import annotations

from seedbed.tasks.formats import SPLITS, Example, TaskConfig, TaskData, choose, read_examples, read_task
from seedbed.tasks.known import TASKS

__all__ = ["SPLITS", "TASKS", "Example", "TaskConfig", "TaskData", "choose", "read_examples", "read_task"]
