"""Draw docs/schedules.svg: the learning-rate schedules as the code computes them.

python tools/draw_schedules.py      writes it; tests/test_docs.py holds it to being current
"""

from __future__ import annotations

from pathlib import Path

from seedbed.optim.schedule import SCHEDULES
from seedbed.page import Chart, Series, svg

PATH = Path(__file__).parents[1] / "docs" / "schedules.svg"
NUM_STEPS = 2000
HISTORY = [(100 * i, 5.0 - 0.5 * min(i, 8) ** 0.5) for i in range(1, 20)]
"""Validations that no longer improve after the eighth."""


def draw() -> str:
    """Return the picture."""
    series = []
    for name, kind in SCHEDULES.items():
        if name == "constant":  # six colours, and a level line needs no picture
            continue
        schedule = kind(min_warmup_steps=100)
        points = [(s, schedule.factor(s, NUM_STEPS, HISTORY)) for s in range(0, NUM_STEPS + 1, 10)]
        series.append(Series(name, points))
    return svg(Chart("Learning-rate schedules", "step", "share of the peak rate", series, from_zero=True))


if __name__ == "__main__":
    PATH.write_text(draw(), encoding="utf-8")
