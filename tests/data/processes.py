"""Finds processes and their memory through /proc, for the tests of workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

WORKER = b"xtra_jax.data.workers"


def workers_of(parent: int) -> list[int]:
    """The worker processes of a process that are alive, in the order of their starts."""
    found = []
    for pid in _pids():
        try:
            stat = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
            command = (Path("/proc") / str(pid) / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat[1]) == parent and stat[0] != "Z" and WORKER in command:
            found.append((int(stat[19]), pid))
    return [pid for _, pid in sorted(found)]


def marked(mark: str) -> set[int]:
    """The processes alive with this text in their environment, whoever their parents are."""
    found = set()
    for pid in _pids():
        try:
            if mark.encode() in (Path("/proc") / str(pid) / "environ").read_bytes():
                found.add(pid)
        except OSError:
            continue
    return found


def shared_memory(pid: int) -> set[int]:
    """The memory without a name that a process holds for batches, by its inodes."""
    return {which for link, which in _descriptors(pid) if link.startswith("/memfd:xtra-batches")}


def named_shared_memory(pid: int) -> set[str]:
    """The segments and semaphores in /dev/shm that a process maps or has open."""
    maps = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
    mapped = {line.split()[-1] for line in maps if "/dev/shm/" in line}
    return mapped | {link for link, _ in _descriptors(pid) if link.startswith("/dev/shm/")}


def holders(memory: set[int]) -> set[int]:
    """The processes that hold any of this memory."""
    return {pid for pid in _pids() if shared_memory(pid) & memory}


def resident(pid: int) -> int:
    """Bytes of a process's resident memory, but for pages of files: those the kernel may drop."""
    status = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in status if line.endswith(" kB")}
    return 1024 * (sizes["RssAnon"] + sizes["RssShmem"])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return condition()
        time.sleep(0.02)
    return True


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _descriptors(pid: int) -> set[tuple[str, int]]:
    found = set()
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            link = os.readlink(path)
            if link.startswith(("/memfd:", "/dev/shm/")):
                found.add((link, os.stat(path).st_ino))
    except OSError:
        pass  # it ended
    return found
