"""Contestants timed in turns, each in a process of its own, so that only one computes at a time.

Thread pools do not fight over the cores that way, each contestant's memory is its own, and what
slows the machine down slows neighbours in a turn alike: ratios are taken turn by turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

# In a contestant's process, what it does in one turn; it returns when the work is done.
Turn = Callable[[], object]

# glibc then keeps what is freed for the next allocation. Otherwise the kernel takes large buffers
# back at once, and gives them out again page by page and zeroed, in every step.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What is timed.

    Attributes:
        make: called with `arguments` in a process of its own, which must be able to import it.
            Returns a turn and facts about it, for the results.
        environment: variables for that process.
    """

    make: Callable[..., tuple[Turn, dict]]
    arguments: tuple = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def race(
    contestants: dict[str, Contestant], baseline: str, repeats: int, warm_up: int = 2
) -> dict[str, dict]:
    """Times all of them, one after the other, in an order that moves on turn by turn.

    Returns:
        For each contestant, in seconds: the median on the clock, "seconds"; of processor time of
        all its threads, "cpu_seconds", which other work on the machine changes less; all of
        either; "over_NAME" and "cpu_over_NAME", medians of the ratio to the baseline's time of the
        same turn; "peak_mib", the most memory its process held during its turns; and its facts.
    """
    turns: dict[str, list[dict]] = {name: [] for name in contestants}
    with contextlib.ExitStack() as stack:
        # One after the other, too: compiling competes as well.
        started = {name: stack.enter_context(_process(c)) for name, c in contestants.items()}
        for repeat in range(repeats):
            names = list(contestants)
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                if repeat == 0:
                    for _ in range(warm_up):
                        _ask(started[name][0], "turn")
                    _ask(started[name][0], "forget the peak")
                turns[name].append(_ask(started[name][0], "turn"))
        peaks = {name: _ask(connection, "peak") for name, (connection, _) in started.items()}
    return {
        name: {
            **_summary(turns[name], turns[baseline], baseline),
            "peak_mib": peaks[name],
            **started[name][1],
        }
        for name in contestants
    }


def _summary(turns: list[dict], base: list[dict], baseline: str) -> dict:
    found: dict = {}
    for kind, prefix in (("seconds", ""), ("cpu_seconds", "cpu_")):
        mine, theirs = [t[kind] for t in turns], [t[kind] for t in base]
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        found |= {
            kind: statistics.median(mine),
            f"{kind}_all": mine,
            f"{prefix}speed_over_{baseline}": statistics.median(ratios),
            f"{prefix}speed_over_{baseline}_all": ratios,
        }
    return found | {"page_faults": statistics.median(t["page_faults"] for t in turns)}


@contextlib.contextmanager
def _process(contestant: Contestant) -> Iterator[tuple[Connection, dict]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, contestant.make, contestant.arguments), daemon=False
    )
    before = dict(os.environ)
    os.environ.update(contestant.environment)
    try:
        process.start()
    finally:
        for name in contestant.environment:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
    theirs.close()
    try:
        yield ours, ours.recv()
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def _ask(connection: Connection, what: str):
    connection.send(what)
    return connection.recv()


def _serve(connection: Connection, make, arguments: tuple) -> None:
    turn, facts = make(*arguments)
    connection.send(facts)
    with contextlib.suppress(EOFError):
        while True:
            what = connection.recv()
            if what == "turn":
                connection.send(_timed(turn))
            elif what == "peak":
                connection.send(_peak_mib())
            else:
                _forget_the_peak()
                connection.send(None)


def _timed(turn: Turn) -> dict[str, float]:
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    turn()
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
    }


def _forget_the_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    """Since it was last forgotten, where the system can forget; and else since the start."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
