"""Brings batches to the devices in a thread, while the devices compute on the ones before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

READY = 2  # one to go on with, one on its way
_CLOSING = 10.0  # seconds to wait for a thread that is waiting for a batch itself


class Feed(Iterator[Any]):
    """Batches in their order, each placed before it is asked for.

    It holds no more than it is told to: the next batch is fetched when one has been taken. What is
    raised while a batch is made or placed is raised where that batch would have come. A feed that
    is not read to its end has to be closed; it then closes what it reads from, too.

    Args:
        batches: on the host. If it has a method `close`, that is called from the feed's thread.
        put: places one batch on the devices, without collective operations.
        ready: batches held beside those that were taken, the one being made included.
    """

    def __init__(self, batches: Iterable[Any], put: Callable[[Any], Any], *, ready: int = READY):
        self._batches, self._put = iter(batches), put
        self._placed: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(ready)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        batch, error = self._placed.get()
        if error is not None:
            self.close()
            raise error
        self._room.release()
        return batch

    def close(self) -> None:
        """Ends the thread and lets go of its batches; may be called again."""
        self._closed.set()
        self._room.release()
        self._thread.join(_CLOSING)
        while not self._placed.empty():
            self._placed.get()

    def _run(self) -> None:
        try:
            while True:
                self._room.acquire()
                if self._closed.is_set():
                    break
                self._placed.put((self._put(next(self._batches)), None))
        except BaseException as error:  # StopIteration, too
            self._placed.put((None, error))
        finally:
            close = getattr(self._batches, "close", None)
            if close is not None:
                close()
