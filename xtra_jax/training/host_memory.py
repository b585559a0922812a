"""The host's memory: what compiling leaves behind goes back to the system."""

from __future__ import annotations

import ctypes
import gc


def give_back_freed_memory() -> None:
    """Returns to the system what this process has freed and its C library keeps for later.

    After compiling, that is hundreds of MiB that nothing asks for again. Where the library isn't
    glibc, nothing is done.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
