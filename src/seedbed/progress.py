"""Say how far long work is, without knowing who listens.

Stages take a `Progress` and call it; `commands/console.py` turns the calls into bars with rate and remaining time, a
pipe gets plain lines, tests get nothing. Library code never prints.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "duration", "silent"]


class Progress(Protocol):
    """Be told about progress: `progress("reading", done=3_000_000, total=20_000_000, unit="bytes")`.

    Calls are cheap and may be frequent; `done` never decreases within one phase, `total` is None when unknown.
    """

    def __call__(self, phase: str, *, done: int, total: int | None, unit: str) -> None:
        """Report the state of one phase."""


def silent(phase: str, *, done: int, total: int | None, unit: str) -> None:
    """Ignore progress."""


def duration(seconds: float) -> str:
    """Write a time for people: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
