"""Writing tensors as .safetensors, and as the zip container of PyTorch, one tensor at a time.

Both are written by hand, because that is little, needs no PyTorch, and never holds a second copy of
the weights: a tensor is laid out, cast and written before the next one's turn comes.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from xtra_jax.errors import UserError

# By the names that a user gives; what the two containers call them.
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "bool": "BOOL"}
_TORCH_STORAGE = {
    "float32": "FloatStorage",
    "bfloat16": "BFloat16Storage",
    "float16": "HalfStorage",
    "bool": "BoolStorage",
}
_ALIGNMENT = 64  # of every tensor in PyTorch's container, as PyTorch itself writes it


def cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor in another dtype, rounded to nearest; boolean ones stay boolean.

    Raises:
        UserError: a finite value becomes infinite.
    """
    if tensor.dtype in (np.dtype(bool), DTYPES[dtype]):
        return tensor
    with np.errstate(over="ignore"):
        rounded = tensor.astype(DTYPES[dtype])
    if not np.isfinite(rounded).all():
        lost = np.isfinite(tensor) & ~np.isfinite(rounded)
        if lost.any():
            largest = float(np.abs(tensor[lost]).max())
            raise UserError(
                f"{name} holds {largest:.6g}, and the largest number of {dtype} is "
                f"{float(ml_dtypes.finfo(DTYPES[dtype]).max):.6g}: use another dtype"
            )
    return rounded


def write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, np.ndarray],
    *,
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a .safetensors file.

    Args:
        file: open for writing bytes; never sought in.
        tensors: by name, in any memory layout.
        dtype: of all that are not boolean, one of `DTYPES`.
        metadata: what the file says of itself.

    Raises:
        UserError: see `cast`.
    """
    # The widest first, so that each begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: -_itemsize(tensors[name], dtype))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.size * _itemsize(tensor, dtype)
        header[name] = {
            "dtype": _SAFETENSORS[_dtype_name(tensor, dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(_bytes(cast(name, tensors[name], dtype)))


def write_torch(
    file: BinaryIO,
    tensors: Mapping[str, np.ndarray],
    *,
    dtype: str = "float32",
    under: str = "state_dict",
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Writes what `torch.load(..., weights_only=True)` reads: a dict with the tensors in a dict.

    Args:
        file: open for writing bytes; never sought in.
        tensors: by name, in any memory layout.
        dtype: of all that are not boolean, one of `DTYPES`.
        under: the key of the tensors.
        beside: further keys, with values that JSON could hold.

    Raises:
        UserError: see `cast`.
    """
    entries = {under: _Tensors(tensors, dtype), **(beside or {})}
    counted = _Counted(file)
    with zipfile.ZipFile(counted, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content) -> None:
            entry = zipfile.ZipInfo(f"model/{name}")
            if name.startswith("data/"):
                begin = counted.tell() + 30 + len(entry.filename) + 4
                entry.extra = struct.pack("<2sH", b"FB", -begin % _ALIGNMENT) + bytes(
                    -begin % _ALIGNMENT
                )
            archive.writestr(entry, content)

        add("data.pkl", pickle.PROTO + b"\x02" + _pickled(entries) + pickle.STOP)
        add("byteorder", b"little")
        for i, (name, tensor) in enumerate(tensors.items()):
            add(f"data/{i}", _bytes(cast(name, tensor, dtype)))
        add("version", b"3\n")


class _Counted(io.RawIOBase):
    """A file that knows where it is and is only ever written on to."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self._file.write(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position


class _Tensors:
    """The place of the tensors in what is pickled."""

    def __init__(self, tensors: Mapping[str, np.ndarray], dtype: str):
        self.tensors, self.dtype = tensors, dtype


def _pickled(value: Any) -> bytes:
    """The opcodes that put a value on the stack of an unpickler (protocol 2, without a memo)."""
    if isinstance(value, _Tensors):
        parts = enumerate(value.tensors.items())
        items = (
            _pickled(name) + _pickled_tensor(i, tensor, _dtype_name(tensor, value.dtype))
            for i, (name, tensor) in parts
        )
        return pickle.EMPTY_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS
    if value is None:
        return pickle.NONE
    if isinstance(value, bool):
        return pickle.NEWTRUE if value else pickle.NEWFALSE
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return pickle.BININT + struct.pack("<i", value)
        number = pickle.encode_long(value)
        return pickle.LONG1 + bytes([len(number)]) + number
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    if isinstance(value, Mapping):
        items = (_pickled(key) + _pickled(item) for key, item in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(_pickled, value)) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_pickled, value)) + pickle.APPENDS
    raise TypeError(f"{type(value).__name__} is nothing that a checkpoint's settings hold")


def _pickled_tensor(index: int, tensor: np.ndarray, dtype: str) -> bytes:
    strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim))
    storage = (
        pickle.MARK
        + _pickled("storage")
        + _global("torch", _TORCH_STORAGE[dtype])
        + b"".join(map(_pickled, (str(index), "cpu", tensor.size)))
        + pickle.TUPLE
        + pickle.BINPERSID
    )
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + storage
        + b"".join(map(_pickled, (0, tensor.shape, strides, False)))
        + hooks
        + pickle.TUPLE
        + pickle.REDUCE
    )


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _dtype_name(tensor: np.ndarray, dtype: str) -> str:
    return "bool" if tensor.dtype == bool else dtype


def _itemsize(tensor: np.ndarray, dtype: str) -> int:
    return 1 if tensor.dtype == bool else DTYPES[dtype].itemsize


def _bytes(tensor: np.ndarray) -> memoryview:
    """The values in row-major order, little-endian; copied only where they do not lie so."""
    tensor = np.ascontiguousarray(tensor)
    if tensor.dtype.newbyteorder("<") != tensor.dtype:
        tensor = tensor.astype(tensor.dtype.newbyteorder("<"))
    return memoryview(tensor.reshape(-1).view(np.uint8))
