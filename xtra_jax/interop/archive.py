"""Reads zip archives as PyTorch writes them: entries that are stored, not compressed.

Nothing is unpacked to disk, so the names of entries are only looked up. Every size is held against
the file's own before anything of that size is read: stored entries inside of the file that don't
overlap can't add up to more than the file.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import NamedTuple

import numpy as np

_END = b"PK\x05\x06"
_END64 = b"PK\x06\x06"
_LOCATOR64 = b"PK\x06\x07"
_CENTRAL = b"PK\x01\x02"
_LOCAL = b"PK\x03\x04"
_IN_64 = 0xFFFFFFFF  # "see the zip64 field"
_MAX_DIRECTORY = 64 << 20
_CHUNK = 8 << 20
_MAX_NAME = 250  # characters of a tensor's name


class BadArchive(ValueError):
    """A file that is damaged, or no container of the kind it seems to be."""


def check_name(name: str) -> None:
    """BadArchive for a tensor's name that could not be shown in a message."""
    if len(name) > _MAX_NAME or not name.isprintable():
        raise BadArchive(f"a tensor in it has the name {name[:40]!r}..., which no checkpoint has")


class Entry(NamedTuple):
    """Where an entry's bytes are, from the start of the file, and their CRC-32."""

    start: int
    size: int
    crc: int


class File:
    """A file of which ranges are read; never more than it has."""

    def __init__(self, path: os.PathLike | str):
        self._file = io.FileIO(os.fspath(path))
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, size: int) -> np.ndarray:
        """uint8 [size]."""
        if start < 0 or size < 0 or start + size > self.size:
            raise BadArchive(
                f"it ends at byte {self.size:,}, and byte {start + size:,} is needed: it is cut "
                "short or damaged"
            )
        data = np.empty(size, np.uint8)
        self._file.seek(start)
        view, done = memoryview(data), 0
        while done < size:
            count = self._file.readinto(view[done : done + _CHUNK])
            if not count:
                raise BadArchive("it became shorter while it was read")
            done += count
        return data

    def crc(self, start: int, size: int) -> int:
        """CRC-32 of a range, in the memory of one chunk."""
        crc = 0
        for at in range(start, start + size, _CHUNK):
            crc = zlib.crc32(self.read(at, min(_CHUNK, start + size - at)), crc)
        return crc

    def close(self) -> None:
        self._file.close()


class Archive:
    """The entries of a zip archive, by name.

    Attributes:
        entries: name to place.
        checked: whether the entries carry checksums; PyTorch can leave them out.

    Raises:
        BadArchive: it is damaged, compressed or encrypted, or entries overlap.
    """

    def __init__(self, file: File):
        self._file = file
        self._verified: set[str] = set()
        try:
            self.entries = _entries(file)
        except struct.error:
            raise BadArchive("its directory of entries is damaged") from None
        self.checked = any(entry.crc for entry in self.entries.values())

    def read(self, name: str) -> np.ndarray:
        """A whole entry, uint8 [size], checked."""
        entry = self.entries[name]
        data = self._file.read(entry.start, entry.size)
        self._check(name, zlib.crc32(data))
        return data

    def read_range(self, name: str, start: int, size: int) -> np.ndarray:
        """A part of an entry, uint8 [size], after the whole entry was checked once."""
        entry = self.entries[name]
        if start == 0 and size == entry.size:
            return self.read(name)
        if start + size > entry.size:
            raise BadArchive(f"its entry {name!r} is too short for a tensor in it")
        if name not in self._verified:
            self._check(name, self._file.crc(entry.start, entry.size))
        return self._file.read(entry.start + start, size)

    def _check(self, name: str, crc: int) -> None:
        if self.checked and crc != self.entries[name].crc:
            raise BadArchive(f"its entry {name!r} is damaged: its checksum is wrong")
        self._verified.add(name)


def _entries(file: File) -> dict[str, Entry]:
    start, size, count = _directory(file)
    if size > _MAX_DIRECTORY:
        raise BadArchive(f"its directory takes {size:,} bytes, which no checkpoint needs")
    data = file.read(start, size).tobytes()
    entries: dict[str, Entry] = {}
    at = 0
    for _ in range(count):
        if data[at : at + 4] != _CENTRAL:
            raise BadArchive("its directory of entries is damaged")
        flags, method, crc, packed, unpacked = struct.unpack_from("<HH4xIII", data, at + 8)
        name_size, extra_size, comment_size = struct.unpack_from("<HHH", data, at + 28)
        (local,) = struct.unpack_from("<I", data, at + 42)
        at += 46
        raw = data[at : at + name_size]
        extra = data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if at > len(data):
            raise BadArchive("its directory of entries is damaged")
        unpacked, packed, local = _wide(extra, unpacked, packed, local)
        name = raw.decode("utf-8", "replace")
        if flags & 1:
            raise BadArchive(f"its entry {name[:80]!r} is encrypted")
        if method != 0 or packed != unpacked:
            raise BadArchive(f"its entry {name[:80]!r} is compressed, and a checkpoint's never are")
        if name in entries:
            raise BadArchive(f"it has two entries of the name {name[:80]!r}")
        entries[name] = Entry(_data_start(file, local, raw), unpacked, crc)
    _check_places(file, entries, start)
    return entries


def _directory(file: File) -> tuple[int, int, int]:
    """Start and size of the directory in bytes, and the number of entries."""
    tail_size = min(file.size, 22 + 65535)
    tail_start = file.size - tail_size
    tail = file.read(tail_start, tail_size).tobytes()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise BadArchive("it begins like a zip archive and does not end like one: it is cut short")
    count, size, start = struct.unpack_from("<HII", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        (end,) = struct.unpack_from("<Q", tail, at - 20 + 8)
        record = file.read(end, 56).tobytes()
        if record[:4] != _END64:
            raise BadArchive("its directory of entries is damaged")
        count, size, start = struct.unpack_from("<QQQ", record, 32)
    if count > size // 46:
        raise BadArchive("its directory of entries is damaged")
    return start, size, count


def _wide(extra: bytes, unpacked: int, packed: int, local: int) -> tuple[int, int, int]:
    """Sizes and place, from the zip64 field where they don't fit 32 bits."""
    values = [unpacked, packed, local]
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field, place = extra[at + 4 : at + 4 + size], 0
            for i, value in enumerate(values):
                if value == _IN_64:
                    (values[i],) = struct.unpack_from("<Q", field, place)
                    place += 8
        at += 4 + size
    return values[0], values[1], values[2]


def _data_start(file: File, local: int, name: bytes) -> int:
    header = file.read(local, 30).tobytes()
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    if header[:4] != _LOCAL or file.read(local + 30, name_size).tobytes() != name:
        raise BadArchive("an entry is not where its directory says")
    return local + 30 + name_size + extra_size


def _check_places(file: File, entries: dict[str, Entry], directory: int) -> None:
    end = 0
    for entry in sorted(entries.values()):
        if entry.start < end or entry.start + entry.size > min(directory, file.size):
            raise BadArchive("its entries overlap or reach beyond its end")
        end = entry.start + entry.size
