"""Reads the header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import ml_dtypes
import numpy as np

from xtra_jax.interop.archive import BadArchive, File, check_name

_MAX_HEADER = 16 << 20  # bytes; that of a model of 500 tensors has 50 kB

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class Span(NamedTuple):
    """A tensor's place in the file, from its start, in bytes."""

    start: int
    dtype: np.dtype
    shape: tuple[int, ...]


def looks_safe(begin: bytes) -> bool:
    """Whether the first 9 bytes are those of a safetensors file."""
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 1 << 32


def spans(file: File) -> tuple[dict[str, Span], dict[str, str], list[str]]:
    """Where each tensor is, the file's own metadata, and tensors of dtypes that aren't read.

    Raises:
        BadArchive: sizes, places and dtypes don't agree with each other or with the file.
    """
    size = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if size > _MAX_HEADER:
        raise BadArchive(f"its header would take {size:,} bytes, which no checkpoint needs")
    text = file.read(8, size).tobytes()
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)[:120]
        raise BadArchive(f"its header is damaged ({reason})") from None
    if not isinstance(header, dict):
        raise BadArchive("its header is damaged (it is no object)")
    metadata = header.pop("__metadata__", {})
    found, unread = {}, []
    places = []
    for name, entry in header.items():
        check_name(name)
        begin, end, shape, kind = _fields(name, entry)
        places.append((begin, end))
        if kind not in DTYPES:
            unread.append(name)
            continue
        dtype = DTYPES[kind]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise BadArchive(
                f"{name[:80]!r} has shape {list(shape)} of {kind} and {end - begin:,} bytes"
            )
        found[name] = Span(8 + size + begin, dtype, shape)
    _check_places(sorted(places), file.size - 8 - size)
    metadata = metadata if isinstance(metadata, dict) else {}
    return found, {str(key): str(value) for key, value in metadata.items()}, unread


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _fields(name: str, entry) -> tuple[int, int, tuple[int, ...], str]:
    if isinstance(entry, dict):
        shape, offsets, kind = (entry.get(key) for key in ("shape", "data_offsets", "dtype"))
        sizes = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else []
        right = sizes and all(type(size) is int and 0 <= size < 2**48 for size in sizes)
        if right and len(offsets) == 2 and len(shape) <= 8 and isinstance(kind, str):
            # Of no numbers at all, a tensor could still have axes that no array can have.
            if math.prod(max(size, 1) for size in shape) >= 2**48:
                raise BadArchive(f"{name[:80]!r} has the huge shape {shape}")
            return *offsets, tuple(shape), kind
    raise BadArchive(f"its header is damaged (at {name[:80]!r})")


def _check_places(places: list[tuple[int, int]], size: int) -> None:
    end = 0
    for begin, after in places:
        if begin != end or after < begin:
            raise BadArchive("its tensors overlap or leave gaps")
        end = after
    if end != size:
        raise BadArchive(
            f"its header describes {end:,} bytes of tensors, and it has {size:,}: it is cut short "
            "or damaged"
        )
