"""The files that weights come in: PyTorch's (zip and older) and safetensors, without PyTorch.

A file is opened as a mapping from names to arrays that are read one at a time, when asked for. What
a file declares is checked against what it has before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from xtra_jax.errors import UserError
from xtra_jax.interop import safe
from xtra_jax.interop.archive import Archive, BadArchive, File, check_name
from xtra_jax.interop.beside import tensors_in, told
from xtra_jax.interop.torch_objects import TABLE, TensorRef, storage_of
from xtra_jax.interop.unpickle import MAX_BYTES, BadPickle, Record, Refused, unpickle

# PyTorch's storage classes, and its dtypes where a storage has none of its own.
_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STATE_KEYS = ("state_dict", "module", "model", "model_state_dict")
_TOLD = ("epoch", "global_step", "global_steps")  # what Lightning and DeepSpeed say of the run
_MAX_BYTE_ORDER = 16  # bytes of "little" or "big"
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


class Source(NamedTuple):
    """One tensor of a file: what it is, and how to read it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """The named tensors of a file; `tensors[name]` reads one.

    Attributes:
        path: of the file.
        container: what kind of file it is, for people.
        sources: shape, dtype and reader of each tensor.
        unreadable: names, and why they can't be read as numbers.
        elsewhere: what else there is (optimizer state, hyper-parameters), each in a few words.
        metadata: texts that the file says of itself, such as its step.
        nbytes: size of the file.
    """

    def __init__(
        self,
        path: Path,
        container: str,
        sources: dict[str, Source],
        *,
        nbytes: int,
        unreadable: Mapping[str, str] = {},
        elsewhere: tuple[str, ...] = (),
        metadata: Mapping[str, str] = {},
    ):
        self.path = path
        self.container = container
        self.sources = sources
        self.unreadable = dict(unreadable)
        self.elsewhere = elsewhere
        self.metadata = dict(metadata)
        self.nbytes = nbytes

    def __getitem__(self, name: str) -> np.ndarray:
        source = self.sources[name]
        with _explained(self.path):
            return source.read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def read_tensors(path: os.PathLike | str) -> Tensors:
    """Opens a file of weights.

    Args:
        path: of a `.ckpt`, `.pt`, `.pth`, `.bin` or `.safetensors` file. Its first bytes decide
            what it is.

    Raises:
        UserError: there is no such file, it is of another kind, or it is damaged or refused.
    """
    path = Path(path).expanduser()
    if "://" in os.fspath(path) or ":/" in os.fspath(path):
        raise UserError(f"{path} is not on this machine: copy it here first")
    if path.is_dir():
        raise UserError(f"{path} {_what_folder(path)}")
    with _explained(path):
        file = File(path)
        begin = file.read(0, min(16, file.size)).tobytes()
        if begin.startswith(_ZIP):
            tensors = _from_zip(path, file)
        elif begin.startswith(_LEGACY):
            tensors = _from_legacy(path, file)
        elif safe.looks_safe(begin):
            tensors = _from_safetensors(path, file)
        else:
            raise BadArchive(
                "it is no file of weights that is known here: PyTorch's .ckpt, .pt and .pth, and "
                ".safetensors are"
            )
    weakref.finalize(tensors, file.close)
    return tensors


def _what_folder(path: Path) -> str:
    """What a folder is that was given for a file: a checkpoint of ours, or one with files in it."""
    runs = (path / "checkpoints", path / "state", *path.glob("[0-9]*/state"))
    if any(place.is_dir() for place in runs):
        return "is a checkpoint of xtra_jax already: every command takes it as it is"
    found = [p for pattern in ("*", "*/*") for p in path.glob(pattern) if p.suffix in _SUFFIXES]
    # What an export and an import leave beside the weights.
    inside = sorted(p for p in found if p.stem not in ("mask", "probe"))
    meant = next((p for p in inside if p.stem == "model"), inside[0] if inside else None)
    return f"is a folder{f': did you mean {meant}?' if meant else ', and a file is needed'}"


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Refused as error:
        raise UserError(
            f"{path} is refused, and nothing in it was run: its pickle {error}; if you trust the "
            "file, load it with PyTorch and save its weights alone"
        ) from error
    except BadPickle as error:
        raise UserError(
            f"cannot read {path}: its pickle is damaged, or not what a checkpoint holds ({error})"
        ) from error
    except BadArchive as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except MemoryError as error:
        raise UserError(f"cannot read {path}: there is not enough memory for it") from error


def _from_safetensors(path: Path, file: File) -> Tensors:
    spans, metadata, unread = safe.spans(file)

    def reader(span: safe.Span) -> Callable[[], np.ndarray]:
        size = math.prod(span.shape) * span.dtype.itemsize
        return lambda: file.read(span.start, size).view(span.dtype).reshape(span.shape)

    return Tensors(
        path,
        "safetensors",
        {name: Source(span.shape, span.dtype, reader(span)) for name, span in spans.items()},
        nbytes=file.size,
        unreadable=dict.fromkeys(unread, "its dtype"),
        metadata=metadata,
    )


def _from_zip(path: Path, file: File) -> Tensors:
    archive = Archive(file)
    pickles = [name for name in archive.entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise BadArchive("it is a zip archive and no checkpoint of PyTorch's: it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.entries:
        raise BadArchive("it is a TorchScript program, and not a file of weights alone")
    if archive.entries[pickles[0]].size > MAX_BYTES:
        raise BadPickle(f"it takes {archive.entries[pickles[0]].size:,} bytes")
    order = root + "byteorder"
    if order in archive.entries and archive.entries[order].size > _MAX_BYTE_ORDER:
        raise BadArchive(f"its byte order takes {archive.entries[order].size:,} bytes")
    swapped = order in archive.entries and archive.read(order).tobytes() == b"big"

    def read_range(key: str, start: int, size: int) -> np.ndarray:
        return archive.read_range(f"{root}data/{key}", start, size)

    def size_of(key: str) -> int:
        entry = archive.entries.get(f"{root}data/{key}")
        return -1 if entry is None else entry.size

    top = unpickle(io.BytesIO(archive.read(pickles[0]).tobytes()), TABLE, storage_of)
    return _from_pickle(path, "PyTorch (zip)", top, size_of, read_range, swapped, file.size)


def _from_legacy(path: Path, file: File) -> Tensors:
    """Files of PyTorch before 1.6: five pickles, then each storage with its length before it."""
    stream = io.BytesIO(file.read(0, min(file.size, MAX_BYTES)).tobytes())
    read = [unpickle(stream, TABLE, storage_of) for _ in range(5)]
    _, version, system, top, keys = read
    is_known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if version != 1001 or not isinstance(system, dict) or not is_known:
        raise BadArchive("it is of a format of PyTorch's that is not known here")
    lengths = _storage_kinds(top)
    places: dict[str, tuple[int, int]] = {}
    at = stream.tell()
    for key in keys:
        dtype = _STORAGES.get(lengths.get(key, ""))
        if dtype is None:
            raise BadArchive(f"its storage {key[:40]!r} is of a dtype that is not known here")
        numel = int.from_bytes(file.read(at, 8).tobytes(), "little")
        places[key] = (at + 8, numel * dtype.itemsize)
        at += 8 + numel * dtype.itemsize
        if at > file.size:
            raise BadArchive(
                f"it ends at byte {file.size:,}, and its storages need {at:,}: it is cut short or "
                "damaged"
            )
    swapped = system.get("little_endian") is False

    def read_range(key: str, start: int, size: int) -> np.ndarray:
        return file.read(places[key][0] + start, size)

    def size_of(key: str) -> int:
        return places[key][1] if key in places else -1

    container = "PyTorch before 1.6"
    return _from_pickle(path, container, top, size_of, read_range, swapped, file.size)


def _from_pickle(
    path: Path,
    container: str,
    top: Any,
    size_of: Callable[[str], int],
    read_range: Callable[[str, int, int], np.ndarray],
    swapped: bool,
    nbytes: int,
) -> Tensors:
    """The state dict among what a pickle holds, and a word on the rest.

    Args:
        size_of: bytes of a storage; -1 where there is none of the key.
        read_range: a part of a storage: key, first byte, number of bytes.
        swapped: whether numbers have their most significant byte first.
    """
    if not isinstance(top, dict):
        raise BadArchive("it holds no dict of tensors")
    state, where = _state_dict(top)
    sources, unreadable = {}, {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, TensorRef | Record):
            continue  # told below, if there are tensors in it
        check_name(name)
        if isinstance(value, TensorRef):
            found = _source(value, size_of, read_range, swapped)
            if isinstance(found, Source):
                sources[name] = found
            else:
                unreadable[name] = found
        else:
            unreadable[name] = f"it is a {value.of or 'thing'}, which is not a plain tensor"
    return Tensors(
        path,
        container,
        sources,
        nbytes=nbytes,
        unreadable=unreadable,
        elsewhere=told(top, state, where),
        metadata=_metadata(top) if where else {},
    )


def _state_dict(top: dict) -> tuple[dict, str]:
    """The dict of names and tensors, and under which key it was; "" when it is the whole."""
    for key in _STATE_KEYS:
        inner = top.get(key)
        if isinstance(inner, dict) and any(isinstance(v, TensorRef) for v in inner.values()):
            return inner, key
    if any(isinstance(value, TensorRef) for value in top.values()):
        return top, ""
    keys = ", ".join(repr(key)[:40] for key in list(top)[:8])
    raise BadArchive(
        f"it holds no tensors under {', '.join(_STATE_KEYS)} or by themselves; its keys are "
        f"{keys or 'none'}"
    )


def _source(ref: TensorRef, size_of, read_range, swapped: bool) -> Source | str:
    """How to read a tensor, or why it can't be read."""
    storage = ref.storage
    dtype = _STORAGES.get(ref.dtype or storage.kind)
    if storage.kind == "UntypedStorage" or dtype is None:
        return f"its dtype ({ref.dtype or storage.kind})"
    size = size_of(storage.key)
    count = math.prod(ref.shape)
    # One element beyond the last that is used. A stride of 0 would let few numbers fill any shape.
    end = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True)) + 1
    if size < 0:
        raise BadArchive(f"its storage {storage.key[:40]!r} is missing")
    if count and (end * dtype.itemsize > size or count * dtype.itemsize > size):
        raise BadArchive(
            f"a tensor of shape {list(ref.shape)} does not fit its storage of {size:,} bytes"
        )

    def read() -> np.ndarray:
        if not count:
            return np.empty(ref.shape, dtype)
        start, length = ref.offset * dtype.itemsize, (end - ref.offset) * dtype.itemsize
        numbers = read_range(storage.key, start, length)
        if swapped:
            numbers = numbers.view(f"u{dtype.itemsize}").byteswap().view(np.uint8)
        steps = [stride * dtype.itemsize for stride in ref.stride]
        return np.ndarray(ref.shape, dtype, numbers.data, strides=steps)

    return Source(ref.shape, dtype, read)


def _metadata(top: dict) -> dict[str, str]:
    """How long the run was, and the config that our own exports carry."""
    counts = {key: top.get(key) for key in _TOLD}
    found = {k: str(n) for k, n in counts.items() if isinstance(n, int) and 0 <= n < 2**63}
    about = top.get("about")
    config = about.get("config") if isinstance(about, dict) else None
    return found | ({"config": config} if isinstance(config, str) else {})


def _storage_kinds(top: Any) -> dict[str, str]:
    """Key to class of every storage that is referred to anywhere."""
    return {ref.storage.key: ref.storage.kind for ref in tensors_in(top)}


def summary(names: list[str], most: int = 4) -> str:
    """A few names, those with numbers in them once: "blocks.*.norm1.weight (12)"."""
    kinds = Counter(".".join("*" if p.isdigit() else p for p in n.split(".")) for n in names)
    told = [kind if count == 1 else f"{kind} ({count})" for kind, count in kinds.items()]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")
