"""Keys and labels of all records of a source: what subsets are chosen by.

A folder of images knows them from its names. A prepared data set has to be read once from end to
end (a minute or two for ImageNet-1k from a fast disk), so what was found is kept in a small file
beside it where that folder can be written. Where some could not be read it isn't kept: they may be
next time.
"""

from __future__ import annotations

import time
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from etils import epath

from xtra_jax.data.ahead import say
from xtra_jax.data.decode import BadImage

_SAY_EVERY = 30.0  # seconds


class RecordIndex(NamedTuple):
    """Attributes:
    keys: bytes [records], "" of a record that cannot be read.
    labels: int32 [records], -1 where unknown.
    """

    keys: np.ndarray
    labels: np.ndarray


def where(source, index: int) -> str:
    """Says where a record lies, without reading it; sources may have a method of that name."""
    describe = getattr(source, "where", None)
    return describe(index) if describe else f"#{index}"


def index_of(source) -> RecordIndex:
    """The keys and labels of a source's records, in order.

    Args:
        source: has a method `index()` that knows them, or records to read one by one and, where
            what is found may be kept, `index_file()`, the path for it.
    """
    if hasattr(source, "index"):
        return source.index()
    if not hasattr(source, "index_file"):
        return _read_all(source)
    file = epath.Path(source.index_file())
    known = _kept(file, source.digest())
    if known is None:
        known = _read_all(source)
        if not _unread(known):
            _keep(file, source.digest(), known)
    return known


def _read_all(source) -> RecordIndex:
    size = len(source)
    keys, labels = [b""] * size, np.full(size, -1, np.int32)
    said = time.monotonic()
    for number in range(size):
        try:
            record = source[number]
        except BadImage:
            continue
        keys[number], labels[number] = record["key"].encode(), record["label"]
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            say(f"Reading labels: {number + 1:,} of {size:,} records")
    index = RecordIndex(np.array(keys, np.bytes_), labels)
    if unread := _unread(index):
        say(f"{unread:,} of {size:,} records could not be read: no class and no list has them.")
    return index


def _unread(index: RecordIndex) -> int:
    return int(np.count_nonzero(index.keys == b""))


def _kept(file: epath.Path, digest: str) -> RecordIndex | None:
    """What an earlier run found, if the records are still the same."""
    try:
        with file.open("rb") as opened, np.load(opened) as saved:
            if saved["digest"].item() == digest:
                known = RecordIndex(saved["keys"], saved["labels"])
                return None if _unread(known) else known
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # absent, or not whole
    return None


def _keep(file: epath.Path, digest: str, index: RecordIndex) -> None:
    """Writes what was found, whole or not at all; that it cannot be written harms nobody."""
    temporary = file.with_name(f".{file.name}.{time.time_ns()}")
    try:
        with temporary.open("wb") as opened:
            np.savez(opened, keys=index.keys, labels=index.labels, digest=digest)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
