"""Makes numbered batches ahead of time in threads, and says so where one is long in coming."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

Batch = dict[str, np.ndarray]
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]

PATIENCE = 60.0  # seconds to wait for a batch before saying so, and between saying so


class BadRecord(NamedTuple):
    """A record that gave no image: its place in the source, its name, and why."""

    index: int
    key: str
    reason: str


Made = tuple[Batch, list[BadRecord]]


class Job(Protocol):
    """What is to be made. It travels to worker processes by cloudpickle.

    Attributes:
        layout: name to shape and dtype of every array of a batch.
    """

    layout: Layout

    def fill(self, number: int, batch: Batch, reading: Callable[[int], None]) -> list[BadRecord]:
        """Makes a batch of that number in place; tells each record before it reads it."""

    def where(self, index: int) -> str:
        """Says where a record lies, without reading it."""


def make_in_threads(job: Job, count: int, threads: int) -> Iterator[Made]:
    """Yields the batches of the numbers below `count`, in order; each thread makes one ahead."""
    reading: dict[int, int] = {}

    def make(number: int) -> Made:
        batch = {name: np.empty(*layout) for name, layout in job.layout.items()}
        try:
            return batch, job.fill(number, batch, lambda at: reading.__setitem__(number, at))
        finally:
            reading.pop(number, None)

    pending: deque[Future[Made]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    try:
        for number in range(count):
            for ahead in range(number + len(pending), min(number + threads, count)):
                pending.append(executor.submit(make, ahead))
            future = pending.popleft()
            wait(
                lambda seconds, future=future: _is_done(future, seconds),
                lambda number=number: place(job, "a thread", reading.get(number, -1)),
            )
            if number + threads < count:
                pending.append(executor.submit(make, number + threads))
            yield future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def wait(ready: Callable[[float], bool], place: Callable[[], str]) -> None:
    """Waits until something is ready, and says on stderr now and then what it waits for.

    Args:
        ready: waits for so many seconds at most, and says whether it need not wait any longer.
        place: who keeps it waiting, and where.
    """
    begin = time.monotonic()
    told = False
    while not ready(PATIENCE):
        told = True
        say(f"No batch for {time.monotonic() - begin:.0f} s: {place()}.")
    if told:
        say(f"Batches go on after {time.monotonic() - begin:.0f} s.")


def place(job: Job, who: str, index: int) -> str:
    """Says who is reading what, or that it has not come to reading."""
    return f"{who} {f'is reading {job.where(index)}' if index >= 0 else 'is not reading yet'}"


def _is_done(future: Future, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        future.exception(seconds)
    return future.done()


def say(line: str) -> None:
    """Prints a line on stderr."""
    with contextlib.suppress(OSError):  # a log that cannot be written ends no training
        print(line, file=sys.stderr, flush=True)
