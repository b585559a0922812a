"""Makes numbered batches ahead of time in worker processes.

A worker is a plain command that is given the job and makes every n-th batch of it, into memory
that it shares with the process that started it (see `xtra_jax.data.shared_memory`). One socket
joins the two, and ends with either of them. So whoever is killed, at whatever moment: no memory
stays behind, a worker ends with its parent, and the parent learns of a worker's end at once.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

import numpy as np

from xtra_jax.data import ahead
from xtra_jax.data.ahead import Job, Made
from xtra_jax.data.shared_memory import Shared, Slots, slots_file
from xtra_jax.errors import RunFailed

MAX_DEFAULT_WORKERS = 32
_SHARE_OF_MEMORY = 1 / 4  # that batches of the default number of workers may take
_ENDING = 5.0  # seconds that a killed worker gets to be gone
# Libraries that would start a thread per core in every worker.
_ONE_THREAD = (
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "RAYON_NUM_THREADS",
)
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_MAIN = "from xtra_jax.data.workers import main; main()"


def available_cores() -> int:
    """Returns how many cores this process may use, one at least: see `default_workers`."""
    usable = _usable()
    processes, cores = _on_this_host(usable)
    return max(int(min(usable, min(cores, _quota()) / processes)), 1)


def default_workers(batch_bytes: int = 0, prefetch: int = 0) -> int:
    """Returns how many workers suit this process: one per core, but for the one it needs itself.

    Cores are those that it may run on, and no more than a container's quota of time. Where the
    environment tells that several processes of a run share the host, as Slurm's, Open MPI's and
    LOCAL_WORLD_SIZE do, each takes its part of them. With a single core there are no workers:
    threads of the process have less to start and to copy.

    Nor are there more than together hold a quarter of the memory in batches: of the machine's or
    the container's, and of this process's part of it where several share the host.

    Args:
        batch_bytes: size of the batches that this process makes.
        prefetch: batches that each worker keeps ready, beside the one that it makes.
    """
    workers = available_cores() - 1
    if batch_bytes:
        processes, _ = _on_this_host(_usable())
        room = _memory() / processes * _SHARE_OF_MEMORY
        workers = int(min(workers, room // (batch_bytes * (prefetch + 1))))
    return min(max(workers, 0), MAX_DEFAULT_WORKERS)


def make_in_workers(job: Job, count: int, num_workers: int, prefetch: int) -> Iterator[Made]:
    """Yields the batches of the numbers below `count`, in order, made by worker processes.

    Args:
        prefetch: batches that each worker keeps ready, beside the one that it makes.

    Raises:
        RunFailed: a worker died. What is raised in a worker is raised here as well.
    """
    num_workers = min(num_workers, count)
    workers: list[_Worker] = []
    with contextlib.ExitStack() as ending:
        shared = Shared.write(job)
        ending.callback(shared.close)
        ending.callback(lambda: [worker.wait() for worker in workers])
        ending.callback(lambda: [worker.kill() for worker in workers])
        for number in range(num_workers):
            plan = _Plan(number, num_workers, count, prefetch + 1, shared.sizes)
            workers.append(_Worker(job, plan, shared.file))
        for number in range(count):
            yield workers[number % num_workers].take()


class _Plan(NamedTuple):
    """What one worker is told: which batches to make, in how many slots, and the job's sizes."""

    number: int
    workers: int
    count: int
    slots: int
    sizes: list[int]


class _Worker:
    """A worker process, as the process that started it sees it."""

    def __init__(self, job: Job, plan: _Plan, job_file: int):
        self._job, self._plan = job, plan
        self._taken = 0
        memory = slots_file(job.layout, plan.slots)
        self._slots = Slots(memory, job.layout, plan.slots)
        self._slots.reading[0] = -1
        self._connection, theirs = Pipe()
        passed = (theirs.fileno(), memory, job_file)
        command = [sys.executable, "-P", "-c", _MAIN, *map(str, passed)]
        try:
            with _signals_blocked():
                self._process = subprocess.Popen(
                    command, env=_environment(), stdin=subprocess.DEVNULL, pass_fds=passed
                )
        finally:
            theirs.close()
            os.close(memory)
        with contextlib.suppress(OSError):  # `take` finds out that it died
            self._connection.send(tuple(plan))

    def take(self) -> Made:
        """Returns the next batch of this worker, in memory of its own."""
        ahead.wait(self._connection.poll, lambda: ahead.place(self._job, self._name, self._at))
        try:
            outcome, value, detail = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RunFailed(self._end()) from error
        if outcome == "failed":
            value.add_note(f"in {self._name}:\n{detail}")
            raise value
        slot = self._slots[self._taken % self._plan.slots]
        batch = {name: np.array(array) for name, array in slot.items()}
        self._taken += 1
        with contextlib.suppress(OSError):  # it may have made its last batch, and be gone
            self._connection.send_bytes(b"free")
        return batch, value

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        # One that hangs in a read that never returns ends when that does.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING)
        self._connection.close()

    @property
    def _name(self) -> str:
        number, workers = self._plan.number + 1, self._plan.workers
        return f"worker {number} of {workers} (process {self._process.pid})"

    @property
    def _at(self) -> int:
        return int(self._slots.reading[0])

    def _end(self) -> str:
        """What became of a worker that is gone before its time."""
        how = "hung up"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_ENDING)
            how = f"ended with exit code {code}" if code >= 0 else f"was killed by {_named(-code)}"
            if code == -signal.SIGKILL:
                how += ", as the system does when memory runs out (then take fewer of them)"
        reading = f" while reading {self._job.where(self._at)}" if self._at >= 0 else ""
        return (
            f"{self._name} of those that prepare batches {how}{reading}: the run ends here, and "
            "the same command continues it from what is saved"
        )


def main() -> None:
    """Runs a worker process, whose arguments are the descriptors it was passed."""
    connection_file, memory, job_file = map(int, sys.argv[1:])
    connection = Connection(connection_file)
    try:
        plan = _Plan(*connection.recv())
    except (EOFError, OSError):
        return
    free = threading.Semaphore(plan.slots)
    # Before anything slow, such as imports: from here on the worker ends with its parent.
    threading.Thread(target=_obey, args=(connection, free), daemon=True).start()
    try:
        job: Job = Shared(job_file, plan.sizes).read()
        slots = Slots(memory, job.layout, plan.slots)

        def reading(index: int) -> None:
            slots.reading[0] = index

        for made, number in enumerate(range(plan.number, plan.count, plan.workers)):
            free.acquire()
            bad = job.fill(number, slots[made % plan.slots], reading)
            reading(-1)
            connection.send(("made", bad, ""))
    except Exception as error:
        with contextlib.suppress(OSError):  # the parent is gone
            connection.send(("failed", _portable(error), traceback.format_exc()))


def _obey(connection: Connection, free: threading.Semaphore) -> None:
    """Takes notice of the slots that the parent has emptied, and ends with it."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.recv_bytes()
            free.release()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Returns the error, or one that says the same where it cannot travel between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Lets a process that is started here inherit that these signals don't reach it.

    An interrupt from the keyboard goes to the whole group, and so may a scheduler's notice; the
    parent decides what they mean.
    """
    its = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, its)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> dict[str, str]:
    """Returns the environment of a worker: the modules that we see, one thread, no accelerator."""
    return {
        **os.environ,
        **dict.fromkeys(_ONE_THREAD, "1"),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }


def _usable() -> int:
    """Returns how many cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _on_this_host(usable: int) -> tuple[int, int]:
    """Returns how many processes of the run share the host, and the cores that they share.

    Launchers that bind each process to cores of its own tell how many there are in all. Slurm tells
    the processes of each host as "4(x2),3".

    Args:
        usable: cores that this process may run on.
    """

    def number(name: str) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdecimal() else 0

    if processes := number("LOCAL_WORLD_SIZE"):
        return processes, usable
    if processes := number("OMPI_COMM_WORLD_LOCAL_SIZE"):
        return processes, os.cpu_count() or usable
    hosts: list[int] = []
    for count, times in _TASKS.findall(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        hosts += [int(count)] * int(times or 1)
    host = number("SLURM_NODEID")
    if host < len(hosts) and hosts[host]:
        return hosts[host], number("SLURM_CPUS_ON_NODE") or usable
    return 1, usable


def _memory(root: str = "/sys/fs/cgroup") -> float:
    """Returns the bytes of memory that the machine has, or the container may use."""
    limits = [float("inf")]
    with contextlib.suppress(OSError, ValueError):  # not every system tells
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        # ValueError: "max" is no number
        with contextlib.suppress(OSError, ValueError), open(f"{root}/{file}") as opened:
            limits.append(int(opened.read()))
    return min(limits)


def _quota(root: str = "/sys/fs/cgroup") -> float:
    """Returns how many cores' time the control group of a container may use."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"{root}/cpu.max") as file:
            quota, period = file.read().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        with open(f"{root}/cpu/cpu.cfs_quota_us") as file:
            quota = int(file.read())
        with open(f"{root}/cpu/cpu.cfs_period_us") as file:
            return quota / int(file.read()) if quota > 0 else float("inf")
    return float("inf")


def _named(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
