"""Writes files as PyTorch does, without PyTorch: for tests of what reads them.

Pickles name functions of PyTorch's, and Python's pickler wants to find what it names; so while one
is written, modules of these names stand in.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_KINDS = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_MODULES = ("torch", "torch._utils", "pytorch_lightning", "pytorch_lightning.utilities")


class Tensor:
    """A view of a storage: a flat array, an offset, a shape and strides in elements."""

    def __init__(self, storage: np.ndarray, offset: int, shape, stride):
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        """A tensor with the array's own strides, so that a transposed one stays transposed."""
        base = array
        while base.base is not None:
            base = base.base
        flat = np.ascontiguousarray(array).reshape(-1) if base.ndim != 1 else base
        if flat is base:
            offset = (array.ctypes.data - base.ctypes.data) // base.itemsize
            return cls(base, offset, array.shape, [s // array.itemsize for s in array.strides])
        steps = np.empty(array.shape, np.int8).strides
        return cls(flat, 0, array.shape, list(steps))


class Hyperparameters(dict):
    """Stands for Lightning's `AttributeDict`."""


class _Storage:
    def __init__(self, array: np.ndarray):
        self.array = array


class _Pickler(pickle.Pickler):
    def __init__(self, file, modules, legacy: bool):
        super().__init__(file, protocol=2)
        self._modules, self._legacy = modules, legacy
        self.storages: dict[int, tuple[str, np.ndarray]] = {}

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        array = value.array
        key = self.storages.setdefault(id(array), (str(len(self.storages)), array))[0]
        kind = getattr(self._modules["torch"], _KINDS[array.dtype.name])
        return ("storage", kind, key, "cpu", array.size, *([None] if self._legacy else []))

    def reducer_override(self, value):
        if isinstance(value, np.ndarray):
            value = Tensor.of(value)
        if isinstance(value, Tensor):
            rebuild = self._modules["torch._utils"]._rebuild_tensor_v2
            view = (tuple(map(int, value.shape)), tuple(map(int, value.stride)))
            storage = _Storage(value.storage)
            return rebuild, (storage, int(value.offset), *view, False, OrderedDict())
        if type(value) is Hyperparameters:
            of = self._modules["pytorch_lightning.utilities"].AttributeDict
            return of, (), {"note": 1}, None, iter(value.items())
        return NotImplemented


@contextlib.contextmanager
def _stand_ins() -> Iterator[dict[str, types.ModuleType]]:
    modules = {name: types.ModuleType(name) for name in _MODULES}

    def add(module: str, name: str, made: Any) -> None:
        made.__module__, made.__qualname__ = module, name
        setattr(modules[module], name, made)

    add("torch._utils", "_rebuild_tensor_v2", lambda: None)
    modules["torch._utils"]._rebuild_tensor_v2.__name__ = "_rebuild_tensor_v2"
    for kind in _KINDS.values():
        add("torch", kind, type(kind, (), {}))
    add("pytorch_lightning.utilities", "AttributeDict", type("AttributeDict", (dict,), {}))
    before = {name: sys.modules.get(name) for name in _MODULES}
    sys.modules.update(modules)
    try:
        yield modules
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def pickled(value: Any, legacy: bool = False) -> tuple[bytes, dict[str, np.ndarray]]:
    """A pickle as `torch.save` writes it, and the storages that it refers to, by key."""
    with _stand_ins() as modules:
        stream = io.BytesIO()
        pickler = _Pickler(stream, modules, legacy)
        pickler.dump(value)
    return stream.getvalue(), dict(pickler.storages.values())


def save(path: Path, value: Any, *, byteorder: str = "little", checksums: bool = True) -> Path:
    """Writes the zip container; arrays in `value` become tensors."""
    data, storages = pickled(value)
    entries = {"data.pkl": data, "byteorder": byteorder.encode()}
    for key, array in storages.items():
        swapped = array.byteswap() if byteorder == "big" else array
        entries[f"data/{key}"] = swapped.tobytes()
    entries["version"] = b"3\n"
    write_zip(path, {f"{path.stem}/{name}": content for name, content in entries.items()})
    if not checksums:
        path.write_bytes(_without_checksums(path))
    return path


def write_zip(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content, method)
    return path


def _without_checksums(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            data[entry.header_offset + 14 : entry.header_offset + 18] = bytes(4)
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 16 : at + 20] = bytes(4)
        at = data.find(b"PK\x01\x02", at + 4)
    return bytes(data)


def save_legacy(path: Path, value: Any) -> Path:
    """Writes the container of PyTorch before 1.6."""
    data, storages = pickled(value, legacy=True)
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    with open(path, "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(part, file, protocol=2)
        file.write(data)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
    return path


def save_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata=None) -> Path:
    """Writes safetensors by the format's description, not with what the package uses."""
    import json

    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, array in tensors.items():
        end = at + array.nbytes
        offsets = [at, end]
        shape = list(array.shape)
        header[name] = {"dtype": kinds[array.dtype.name], "shape": shape, "data_offsets": offsets}
        at = end
    text = json.dumps(header).encode()
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
