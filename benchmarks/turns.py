"""Contestants timed in turns, each in a process of its own, so that only one computes at a time.

Thread pools do not fight over the cores that way, each contestant's memory is its own, and what
slows the machine down slows neighbours in a turn alike: ratios are taken turn by turn. Where only
one process can hold the device, on TPUs, there are no turns: one contestant ends before the next
starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.device import SHARE_A_GPU
from benchmarks.memory import forget_the_host_peak, host_peak_mib
from xtra_jax.errors import RunFailed, UserError
from xtra_jax.training.host_memory import give_back_freed_memory

# In a contestant's process, what it does in one turn; it returns when the work is done.
Turn = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What is timed.

    Attributes:
        make: called with `arguments` in a process of its own, which must be able to import it.
            Returns a turn and facts about it, for the results.
        environment: variables for that process.
        device_peak_mib: called in that process, after its turns: the most that it held of the
            device's memory, None where that is not known.
    """

    make: Callable[..., tuple[Turn, dict]]
    arguments: tuple = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    device_peak_mib: Callable[[], float | None] | None = None


def race(
    contestants: dict[str, Contestant],
    baseline: str,
    repeats: int,
    warm_up: int = 2,
    *,
    in_turns: bool = True,
) -> dict[str, dict]:
    """Times all of them, one after the other, in an order that moves on turn by turn.

    Args:
        in_turns: off where only one process can hold the device: then each contestant takes all of
            its turns and ends before the next one starts, and ratios are of medians.

    Returns:
        For each contestant, in seconds: the median on the clock, "seconds"; of processor time of
        all its threads, "cpu_seconds", which other work on the machine changes less; all of
        either; "speed_over_NAME" and "cpu_speed_over_NAME", medians of the ratio to the baseline's
        time of the same turn; "host_peak_mib", the most memory its process held during its turns;
        "device_peak_mib", the most it held of the device since it began, where that is known; and
        its facts.

    Raises:
        UserError: the baseline is none of them, or a contestant refuses what it is given.
        RunFailed: a contestant's process died.
    """
    if baseline not in contestants:
        known = ", ".join(map(repr, contestants))
        raise UserError(f"the baseline {baseline!r} is none of those timed: {known}")
    together = [contestants] if in_turns else [{name: c} for name, c in contestants.items()]
    turns: dict[str, list[dict]] = {}
    facts: dict[str, dict] = {}
    for heat in together:
        turns_of_heat, facts_of_heat = _heat(heat, repeats, warm_up)
        turns |= turns_of_heat
        facts |= facts_of_heat
    return {
        name: _summary(turns[name], turns[baseline], baseline, in_turns) | facts[name]
        for name in contestants
    }


def _heat(
    contestants: dict[str, Contestant], repeats: int, warm_up: int
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    turns: dict[str, list[dict]] = {name: [] for name in contestants}
    with contextlib.ExitStack() as stack:
        # One after the other, too: compiling competes as well.
        started = {name: stack.enter_context(_process(name, c)) for name, c in contestants.items()}
        for repeat in range(repeats):
            names = list(contestants)
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                if repeat == 0:
                    for _ in range(warm_up):
                        started[name].ask("turn")
                    started[name].ask("forget the peak")
                turns[name].append(started[name].ask("turn"))
        return turns, {name: one.ask("peaks") | one.facts for name, one in started.items()}


def _summary(turns: list[dict], base: list[dict], baseline: str, in_turns: bool) -> dict:
    found: dict = {}
    for kind, prefix in (("seconds", ""), ("cpu_seconds", "cpu_")):
        mine, theirs = [t[kind] for t in turns], [t[kind] for t in base]
        over = f"{prefix}speed_over_{baseline}"
        found |= {kind: statistics.median(mine), f"{kind}_all": mine}
        if in_turns:
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
            found |= {over: statistics.median(ratios), f"{over}_all": ratios}
        else:
            found[over] = statistics.median(theirs) / statistics.median(mine)
    return found | {"page_faults": statistics.median(t["page_faults"] for t in turns)}


@dataclasses.dataclass(frozen=True)
class _Started:
    name: str
    process: BaseProcess
    connection: Connection
    facts: dict = dataclasses.field(default_factory=dict)

    def ask(self, what: str):
        # Where it has died, it does not matter which of the two notices.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(what)
        return self.answer("during its turns")

    def answer(self, when: str):
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise RunFailed(
                f"the contestant {self.name!r} ended with {how} {when}; what it said is above"
            ) from None
        if isinstance(answer, UserError):
            raise UserError(f"{self.name!r}: {answer}")
        return answer


@contextlib.contextmanager
def _process(name: str, contestant: Contestant) -> Iterator[_Started]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contestant), daemon=False)
    environment = SHARE_A_GPU | contestant.environment
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process.start()
    finally:
        for variable in environment:
            os.environ.pop(variable)
            if variable in before:
                os.environ[variable] = before[variable]
    theirs.close()
    started = _Started(name, process, ours)
    try:
        yield dataclasses.replace(started, facts=started.answer("before its first turn"))
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection, contestant: Contestant) -> None:
    try:
        turn, facts = contestant.make(*contestant.arguments)
    except UserError as error:
        connection.send(error)
        return
    connection.send(facts)
    with contextlib.suppress(EOFError):
        while True:
            what = connection.recv()
            if what == "turn":
                connection.send(_timed(turn))
            elif what == "peaks":
                connection.send(_peaks(contestant))
            else:
                give_back_freed_memory()  # as a run does after compiling; for all alike
                forget_the_host_peak()
                connection.send(None)


def _peaks(contestant: Contestant) -> dict[str, float]:
    peaks = {"host_peak_mib": host_peak_mib()}
    of_device = contestant.device_peak_mib and contestant.device_peak_mib()
    return peaks if of_device is None else peaks | {"device_peak_mib": of_device}


def _timed(turn: Turn) -> dict[str, float]:
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    turn()
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
    }
