"""Notice a worker that died or hangs while the others wait for it in a collective operation, and end this process.

A killed worker breaks its connections, which gloo notices at once. One that is stopped, swapped out or stuck breaks nothing: the
others would wait for as long as the collective may take. So every worker writes a counter into the store now and then, from a
thread of its own, the first worker reads them all, and every worker reads the first one's.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from torch._C._distributed_c10d import Store

from seedbed.errors import WorkerLostError

__all__ = ["Heartbeat"]


class Heartbeat:
    """Beat, and listen, while the block runs.

    Args:
        store: a connection of its own; the thread must not share one with collectives.
        rank: which worker this is.
        size: how many there are.
        every_seconds: between two beats.
        patience_seconds: without a beat of another worker before it counts as lost.
        on_loss: what to do then; by default say so and end the process with `WorkerLostError`'s exit code: the main thread
            may be waiting inside a collective, where no exception reaches it.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        size: int,
        every_seconds: float = 2.0,
        patience_seconds: float = 40.0,
        on_loss: Callable[[WorkerLostError], None] | None = None,
    ) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.every_seconds = every_seconds
        self.patience_seconds = patience_seconds
        self.on_loss = on_loss or _end
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Begin to beat."""
        self.store.set(str(self.rank), "0")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop beating and listening; call it where all workers have come so far."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        listened = (
            [str(other) for other in range(self.size) if other != self.rank] if self.rank == 0 else ["0"]
        )
        heard = dict.fromkeys(listened, (b"", time.monotonic()))
        number = 0
        while not self._done.wait(self.every_seconds):
            number += 1
            try:
                self.store.set(str(self.rank), str(number))
                now = time.monotonic()
                for name in listened:
                    # A worker that has not come yet has no key, and `get` would wait for it.
                    value = self.store.get(name) if self.store.check([name]) else b""
                    if value != heard[name][0]:
                        heard[name] = (value, now)
            except RuntimeError as error:  # the base of all that torch's stores raise
                if not self._done.is_set():
                    self._lost(
                        f"the store of the workers cannot be reached ({str(error).splitlines()[0][:120]})"
                    )
                return
            for name, (_, when) in heard.items():
                if now - when > self.patience_seconds and not self._done.is_set():
                    self._lost(f"worker {name} has not been heard of for {now - when:.0f} seconds")
                    return

    def _lost(self, what: str) -> None:
        self.on_loss(
            WorkerLostError(
                f"worker {self.rank}: {what}.",
                hint="torchrun --max-restarts N starts all again; the same command goes on from the last checkpoint",
            )
        )


def _end(error: WorkerLostError) -> None:
    sys.stderr.write(f"error: {error.message}\nhint:  {error.hint}\n")
    sys.stderr.flush()
    os._exit(error.exit_code)
