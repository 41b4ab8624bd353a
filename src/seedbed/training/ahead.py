"""Make the next step's micro-batches while a GPU does this one's.

A window's micro-batches are a pure function of its number, so a thread may make those of the next one beside the step: whether
it did, or whether the step asks for another window after all (a rollback), changes nothing but time. On a CPU the step itself
needs the cores, and windows are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch

from seedbed.training.step import MicroBatch

__all__ = ["Ahead", "Windows", "made_ahead"]


class Windows(Protocol):
    """What hands out the micro-batches of windows: a `Feed`, or one that works ahead."""

    @property
    def num_windows(self) -> int:
        """Steps planned."""

    def micro_batches(self, window: int) -> Sequence[MicroBatch]:
        """Return those of a window, on the host."""


class Ahead:
    """Hand out the windows of a feed, the next of them made in a thread.

    Args:
        feed: makes them.
        device: of the GPU: they are put into page-locked memory, from which they are copied without waiting. A stream of their
            own would gain little, since a step's ids are some hundred kilobytes. None: they stay where they are.
    """

    def __init__(self, feed: Windows, *, device: torch.device | None = None) -> None:
        self.feed = feed
        self._pins = device is not None
        self._next: tuple[int, Future[Sequence[MicroBatch]]] | None = None
        self._pool = ThreadPoolExecutor(1, "seedbed-rows", initializer=partial(_enter, _index_of(device)))

    @property
    def num_windows(self) -> int:
        """Steps planned."""
        return self.feed.num_windows

    def micro_batches(self, window: int) -> Sequence[MicroBatch]:
        """Return those of a window, and begin the next one's."""
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] == window:
            made = waiting[1].result()
        else:
            made = self._pool.submit(self._make, window).result()
        if window + 1 < self.num_windows:
            self._next = window + 1, self._pool.submit(self._make, window + 1)
        return made

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, window: int) -> Sequence[MicroBatch]:
        made = self.feed.micro_batches(window)
        return [micro.pinned() for micro in made] if self._pins else made


@contextmanager
def made_ahead(feed: Windows, device: torch.device) -> Iterator[Windows]:
    """Give what hands out a run's windows while the block runs: on a GPU one that works ahead, else the feed itself."""
    if device.type != "cuda":
        yield feed
        return
    ahead = Ahead(feed, device=device)
    try:
        yield ahead
    finally:
        ahead.close()


def _index_of(device: torch.device | None) -> int | None:
    """Return which GPU is meant, None for none."""
    if device is None:
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _enter(index: int | None) -> None:
    """Turn a new thread to its worker's GPU: pinning would open a context on the first one, which is another worker's."""
    if index is not None:
        torch.cuda.set_device(index)
