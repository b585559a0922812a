"""The host's memory: what compiling leaves behind goes back to the system."""

from __future__ import annotations

import ctypes
import gc


def give_back_freed_memory() -> None:
    """Returns to the system what this process has freed and its C library keeps for later.

    After compiling, that is hundreds of MiB that nothing asks for again. Where the library is
    neither glibc nor gperftools' tcmalloc, nothing is done.
    """
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    if hasattr(library, "MallocExtension_ReleaseFreeMemory"):
        library.MallocExtension_ReleaseFreeMemory()
