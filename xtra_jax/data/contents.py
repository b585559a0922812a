"""Whether images are still the same ones, beyond their names: for what is kept from run to run."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from xtra_jax.data.sources import Source

_AT_ONCE = 32  # files: on a network disk the waiting takes the time


def contents(source: Source) -> str:
    """A text that changes when the records, their order, or the files that hold them do.

    Files are taken for the same by their sizes and the times when they were written; nothing is
    read. A copy elsewhere may count as another set, and an edited image never as the same.
    """
    digest = hashlib.sha256(source.digest().encode())
    with ThreadPoolExecutor(_AT_ONCE) as executor:
        for stamp in executor.map(_stamp, source.files()):
            digest.update(stamp)
    return digest.hexdigest()


def _stamp(file: str) -> bytes:
    try:
        if "://" in file:
            remote = epath.Path(file).stat()
            return f"{remote.length} {remote.mtime}\n".encode()
        found = os.stat(file)
    except OSError:
        return b"gone\n"
    return f"{found.st_size} {found.st_mtime_ns}\n".encode()
