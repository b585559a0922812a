"""What a process has freed goes back to the system."""

import ctypes
import platform
import resource
from pathlib import Path

import pytest

from xtra_jax.training.host_memory import give_back_freed_memory

MIB = 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep less")
def test_freed_memory_that_the_c_library_keeps_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    # Pieces too small to be mapped by themselves, the last of which keeps the heap from shrinking.
    pieces = [libc.malloc(64 * 1024) for _ in range(2000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 64 * 1024)
    for piece in pieces[:-1]:
        libc.free(piece)
    before = resident_bytes()
    give_back_freed_memory()
    assert resident_bytes() < before - 100 * MIB
    libc.free(pieces[-1])
