"""Roll back when numbers go wrong for good: weights of before, rows since then skipped, the run goes on.

A step with a gradient that is not finite (or a spike, `spikes.py`) changes nothing and is passed over. Several in a row mean
that the weights are in a bad place, or the rows are; PaLM (2204.02311, section 5.1) met both by restarting from about 100 steps
earlier and skipping the rows in between. The same here: weights and optimizer become those of an anchor, a full checkpoint of
before, and training goes on at the window where it stood. Anchors are saved where validations are, which the plan fixes, never
by the clock: such a run repeats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from seedbed.errors import NumericError
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.hooks import Hook, MetricsLog
from seedbed.training.parallel import wait_for_all
from seedbed.training.state import TrainingState

__all__ = ["RollbackHook"]

_logger = logging.getLogger(__name__)


class RollbackHook(Hook):
    """Save anchors, and go back to one when the loop asks.

    Args:
        checkpoints: of the run.
        log: told of every rollback.
        every: windows between anchors.
        max_rollbacks: how often a run may roll back before it stops.
        rows_of: the rows a window read, for the log.
    """

    name = "rollback"

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        log: MetricsLog,
        every: int,
        max_rollbacks: int,
        rows_of: Callable[[int], Mapping[str, list[int]]],
    ) -> None:
        self.checkpoints = checkpoints
        self.log = log
        self.every = every
        self.max_rollbacks = max_rollbacks
        self.rows_of = rows_of

    def is_due(self, state: TrainingState) -> bool:
        """Say whether an anchor belongs here."""
        return state.window % self.every == 0

    def act(self, state: TrainingState) -> None:
        """Save the state as an anchor; the two newest are kept."""
        self.checkpoints.save_anchor(state)

    def recover(self, state: TrainingState, first_bad: int, window: int) -> None:
        """Go back to the newest anchor from before the first bad step, and on at `state.window`.

        Args:
            state: put back in place, but for its window and what hooks remember.
            first_bad: the first of the steps in a row whose gradient was not applied, from 1.
            window: the last of them.

        Raises:
            NumericError: the run has rolled back as often as it may.
        """
        memory = state.hooks.setdefault(self.name, {"rollbacks": []})
        bad = {str(number): dict(self.rows_of(number - 1)) for number in range(first_bad, window + 1)}
        if len(memory["rollbacks"]) >= self.max_rollbacks:
            raise NumericError(
                f"the gradient was {state.bad_gradient} in {window - first_bad + 1} steps in a row (windows {first_bad} to"
                f" {window}), after {len(memory['rollbacks'])} rollbacks; weights and optimizer are as they were before.",
                hint="lower optim.learning_rate, or look at the rows of these windows; metrics.jsonl lists those of a rollback",
            )
        wait_for_all()  # the first worker may still be writing the anchor
        anchor = self.checkpoints.load_anchor(state, before=first_bad)
        line: dict[str, Any] = {"from": window, "to": anchor, "first_bad": first_bad}
        memory["rollbacks"].append(line)
        self.log.write({"kind": "rollback", "window": window, **line, "rows": bad})
        _logger.warning(
            "gradients of windows %d to %d were %s: weights and optimizer are those of step %d again, the rows since are"
            " skipped (rollback %d of %d)",
            first_bad,
            window,
            state.bad_gradient,
            anchor,
            len(memory["rollbacks"]),
            self.max_rollbacks,
        )
