"""Memory that two processes share and that has no name: when the last of them ends, it is gone.

Named segments (POSIX shared memory, in /dev/shm) outlive a process that is killed, and containers
often get 64 MB of them. The descriptors here are handed over when a process starts.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from typing import Any, NamedTuple

import cloudpickle  # knows what a user's own script or notebook defines
import numpy as np

from xtra_jax.data.ahead import Batch, Layout

_ALIGNMENT = 64  # bytes, of every array


class Slots:
    """Room for batches, and for one number: the record that is being read, -1 for none.

    Args:
        file: from `slots_file`, of the same layout and count.
    """

    def __init__(self, file: int, layout: Layout, count: int):
        sizes = _sizes(layout)
        self._layout, self._starts = layout, _starts(sizes)
        self._size = sum(map(_aligned, sizes))
        self._memory = mmap.mmap(file, _ALIGNMENT + count * self._size)
        self.reading = np.frombuffer(self._memory, np.int64, 1)

    def __getitem__(self, slot: int) -> Batch:
        """The arrays of one slot, which lie in the shared memory."""
        base = _ALIGNMENT + slot * self._size
        return {
            name: np.ndarray(shape, kind, self._memory, base + start)
            for (name, (shape, kind)), start in zip(self._layout.items(), self._starts, strict=True)
        }


def slots_file(layout: Layout, count: int) -> int:
    """Returns the descriptor of memory for so many batches."""
    return _unnamed_file(_ALIGNMENT + count * sum(map(_aligned, _sizes(layout))))


class Shared(NamedTuple):
    """A pickled object, written once and read by many.

    Its arrays are not copied by those who read it: they lie in the shared memory, read-only.
    """

    file: int
    sizes: list[int]

    @classmethod
    def write(cls, value: Any) -> Shared:
        buffers: list[pickle.PickleBuffer] = []
        pickled = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
        sizes = [len(part) for part in parts]
        file = _unnamed_file(sum(map(_aligned, sizes)))
        for part, start in zip(parts, _starts(sizes), strict=True):
            while len(part):
                written = os.pwrite(file, part, start)
                part, start = part[written:], start + written
        return cls(file, sizes)

    def read(self) -> Any:
        memory = memoryview(mmap.mmap(self.file, sum(map(_aligned, self.sizes))))
        pickled, *buffers = (
            memory[start : start + size].toreadonly()
            for start, size in zip(_starts(self.sizes), self.sizes, strict=True)
        )
        return pickle.loads(pickled, buffers=buffers)

    def close(self) -> None:
        os.close(self.file)


def _unnamed_file(size: int) -> int:
    """Returns the descriptor of a file of zeros in memory, or on disk where there is no such."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("xtra-batches")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file


def _sizes(layout: Layout) -> list[int]:
    return [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in layout.values()]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _starts(sizes: list[int]) -> list[int]:
    """Returns where parts of these sizes begin, one after the other."""
    return [sum(map(_aligned, sizes[:i])) for i in range(len(sizes))]
