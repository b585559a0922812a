"""Tasks divided over processes that end with this one.

Processes are started anew ("spawn"), so a script that gets here has to guard its `__main__`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from xtra_jax.errors import RunFailed, UserError

REPORT_EVERY = 0.2  # seconds

Report = Callable[[int], None]


def run(
    tasks: Sequence[Any], work: Callable[[Any, Report], Any], workers: int, report: Report
) -> Iterator[tuple[Any, Any]]:
    """Yields all tasks with their results, as they are finished.

    Args:
        tasks: arguments for `work`; they, the results and `work` must pickle.
        work: called as `work(task, report)`, where `report(n)` says that n more images are done.
        workers: how many processes; with one, or a single task, this process works by itself.
        report: called in this process with what the workers report.

    Raises:
        UserError, RunFailed: as raised by a task, or a worker died. Tasks under way are given up.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from ((task, work(task, report)) for task in tasks)
        return
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(_worker(work)) for _ in range(workers)]
        waiting, busy = deque(tasks), {}
        while waiting or busy:
            while idle and waiting:
                connection = idle.pop()
                busy[connection] = waiting.popleft()
                with _death_said():
                    connection.send(busy[connection])
            for connection in wait(list(busy)):
                with _death_said():
                    kind, value = connection.recv()
                if kind == "images":
                    report(value)
                    continue
                if kind != "result":
                    raise kind(value)
                idle.append(connection)
                yield busy.pop(connection), value


@contextlib.contextmanager
def _death_said() -> Iterator[None]:
    """Turns what talking to a worker that is gone raises into a sentence."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise RunFailed(
            "a worker process was killed, by the system where memory ran out; the shards that are "
            "finished are kept, and the same command continues, perhaps with fewer --workers"
        ) from error


@contextlib.contextmanager
def _worker(work: Callable) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
    process.start()
    theirs.close()  # so that its end is the end of the connection
    try:
        yield ours
    finally:
        ours.close()
        process.terminate()
        process.join()


def _serve(connection: Connection, work: Callable, parent: int) -> None:
    """Works on what comes until nothing more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    counted, told = 0, time.monotonic()

    def report(images: int) -> None:
        nonlocal counted, told
        counted += images
        if time.monotonic() - told >= REPORT_EVERY:
            connection.send(("images", counted))
            counted, told = 0, time.monotonic()

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                result = "result", work(task, report)
            except (UserError, RunFailed) as error:
                result = type(error), str(error)
            except Exception:
                result = RuntimeError, f"in a worker process:\n{traceback.format_exc()}"
            connection.send(("images", counted))
            counted = 0
            connection.send(result)


def _end_with(parent: int) -> None:
    """Ends this process, within a second, once the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
