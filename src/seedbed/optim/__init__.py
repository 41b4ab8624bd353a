"""Parameters and their rates: optimizers, parameter groups, schedules. No module here knows a trainer."""

from __future__ import annotations

from seedbed.optim.adafactor import AdafactorConfig
from seedbed.optim.adam import AdamConfig
from seedbed.optim.adamw import AdamWConfig
from seedbed.optim.base import OptimizerConfig
from seedbed.optim.lamb import LAMBConfig
from seedbed.optim.lion import LionConfig
from seedbed.optim.muon import MuonConfig
from seedbed.optim.normuon import NorMuonConfig
from seedbed.optim.schedule_free import ScheduleFreeAdamWConfig, ScheduleFreeSGDConfig
from seedbed.optim.sgd import SGDConfig

__all__ = ["OPTIMIZERS", "AdamWConfig", "OptimizerConfig", "SGDConfig"]

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "sgd": SGDConfig,
    "adam": AdamConfig,
    "lamb": LAMBConfig,
    "lion": LionConfig,
    "adafactor": AdafactorConfig,
    "muon": MuonConfig,
    "normuon": NorMuonConfig,
    "schedule_free_adamw": ScheduleFreeAdamWConfig,
    "schedule_free_sgd": ScheduleFreeSGDConfig,
}
