"""Parameters and their rates: optimizers, parameter groups, schedules. No module here knows a trainer."""

from __future__ import annotations

from seedbed.optim.adamw import AdamWConfig
from seedbed.optim.base import OptimizerConfig
from seedbed.optim.sgd import SGDConfig

__all__ = ["OPTIMIZERS", "AdamWConfig", "OptimizerConfig", "SGDConfig"]

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "sgd": SGDConfig,
}
