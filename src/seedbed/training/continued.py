"""Watch a run that goes on from another model: what it gains on the new text, what it forgets of the old, when to stop.

Forgetting is the rise of the loss at the old text's stored targets over its value before the first step; the gain is the
fall of the validation loss. Both are measured at the same targets before, during and after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedbed.training.hooks import Hook
from seedbed.training.state import TrainingState

__all__ = ["OLD", "ForgettingHook", "gained_and_forgotten"]

OLD = "old."
"""What scores of the old text are prefixed with."""


class ForgettingHook(Hook):
    """Remember the scores before training, and stop where the old text is forgotten by more than is allowed.

    It acts at validations, right after `ValidationHook`, which must come before it and tell it the scores. All it knows lives
    in `state.hooks["continued"]`, so a resumed run stops where an uninterrupted one does.

    Args:
        every: windows between validations, as the validation hook's.
        last_window: where the plan ends.
        max_forgetting: nats; None never stops.
    """

    name = "continued"

    def __init__(self, *, every: int, last_window: int, max_forgetting: float | None) -> None:
        self.every = every
        self.last_window = last_window
        self.max_forgetting = max_forgetting
        self._heard: tuple[int, dict[str, float]] | None = None

    def hear(self, window: int, scores: Mapping[str, float]) -> None:
        """Take the scores of a validation."""
        self._heard = (window, dict(scores))

    def is_due(self, state: TrainingState) -> bool:
        """Say whether a validation belongs here; not again where one was done before a resume."""
        if state.hooks.get(self.name, {}).get("window") == state.window:
            return False
        return state.window % self.every == 0 or state.window == self.last_window

    def act(self, state: TrainingState) -> None:
        """Compare with the scores before training; the first call, before the first step, remembers those."""
        assert self._heard is not None, "the validation hook comes first"
        window, scores = self._heard
        assert window == state.window
        memory = state.hooks.setdefault(self.name, {"before": scores, "stop": ""})
        memory["window"] = window
        if not self.allows(state, scores):
            forgotten = scores[f"{OLD}loss"] - memory["before"][f"{OLD}loss"]
            memory["stop"] = (
                f"after step {window} the old text was forgotten by {forgotten:.3f} nats,"
                f" more than start.max_forgetting={self.max_forgetting:g}"
            )

    def allows(self, state: TrainingState, scores: Mapping[str, float]) -> bool:
        """Say whether scores keep within the limit; so do those before training."""
        memory = state.hooks.get(self.name)
        if self.max_forgetting is None or memory is None:
            return True
        forgotten: float = scores[f"{OLD}loss"] - memory["before"][f"{OLD}loss"]
        return forgotten <= self.max_forgetting

    def wants_stop(self, state: TrainingState) -> bool:
        """Say whether the limit was passed."""
        return bool(state.hooks.get(self.name, {}).get("stop"))


def gained_and_forgotten(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    max_forgetting: float | None = None,
    keeps_validation: bool = False,
    stopped_because: str = "",
) -> dict[str, Any]:
    """Return losses before and after, their differences, why the run stopped early, if it did, and a sentence of it all.

    Args:
        before: scores before the first step; those of the old text are prefixed `old.` and may be missing.
        after: scores of what was exported, at the same targets.
        max_forgetting: the limit, repeated for the report.
        keeps_validation: the validation targets are those of the run before, so there is one text to speak of.
        stopped_because: a reason, or "".
    """
    result: dict[str, Any] = {
        "new_loss_before": before["loss"],
        "new_loss_after": after["loss"],
        "gained": before["loss"] - after["loss"],
        "keeps_validation": keeps_validation,
        "stopped_because": stopped_because,
    }
    old = f"{OLD}loss"
    if old in before:
        result |= {
            "old_loss_before": before[old],
            "old_loss_after": after[old],
            "forgotten": after[old] - before[old],
            "max_forgetting": max_forgetting,
        }
    return result | {"sentence": _sentence(result)}


def _sentence(result: Mapping[str, Any]) -> str:
    """Say in one sentence what was gained and what was forgotten."""

    def change(name: str, better: str, worse: str) -> str:
        before, after = result[f"{name}_loss_before"], result[f"{name}_loss_after"]
        what = better if after <= before else worse
        return f"{what} {abs(after - before):.3f} nats ({before:.3f} to {after:.3f})"

    if result["keeps_validation"]:
        text = f"on the validation set it keeps it {change('new', 'gained', 'lost')}"
        return text + (f"; stopped early: {result['stopped_because']}" if result["stopped_because"] else "")
    text = f"on the new text it {change('new', 'gained', 'lost')}"
    if "forgotten" in result:
        text += f", of the old text it {change('old', 'also gained', 'forgot')}"
    if result["stopped_because"]:
        text += f"; stopped early: {result['stopped_because']}"
    return text
