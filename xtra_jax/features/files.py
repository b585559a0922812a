"""Files of features, written piece by piece, so that they may be larger than the memory.

Both formats hold the same arrays, and the same description as JSON:

    features  float32 or float16 [images, width] or [images, tokens, width]
    valid     bool [images], false for an image that could not be used: its features are NaN
    labels    int32 [images], only of images that have labels
    keys      the images' names. In .npz text [images]; in .safetensors, which has no text,
              uint8 [bytes]: json.loads(bytes(keys)) gives the list
    metadata  what the features are of. In .npz text []; in .safetensors the file's own metadata
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from xtra_jax.errors import UserError
from xtra_jax.training.storage import explained, is_local

_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "U8"}
_SAFETENSORS_DTYPES |= {"bool": "BOOL"}


class FeatureWriter(Protocol):
    """Takes the features of one image after another, and then the rest."""

    def add(self, rows: np.ndarray) -> None: ...

    def finish(
        self, *, valid: np.ndarray, keys: Sequence[str], labels: np.ndarray | None
    ) -> None: ...


def check_name(path: str) -> None:
    """UserError unless features can be written to a file of this name."""
    if not path.endswith((".npz", ".safetensors")):
        raise UserError(f"--out={path} must end in .npz or .safetensors, which says the format")
    if not is_local(path):
        raise UserError(f"--out={path}: features are written to local files only; copy them after")
    if os.path.isdir(path):
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")


@contextlib.contextmanager
def feature_file(
    path: str, shape: tuple[int, ...], dtype: str, metadata: dict[str, Any]
) -> Iterator[FeatureWriter]:
    """A file being written under a temporary name, which gets its own when it is whole.

    Args:
        path: ends in .npz or .safetensors.
        shape: of all features, images first.
        dtype: "float32" or "float16".
        metadata: anything that JSON can hold.

    Raises:
        UserError: it cannot be written. What was there before stays.
    """
    check_name(path)
    path = os.path.expanduser(path)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"  # nobody else's
    kind = _Npz if path.endswith(".npz") else _Safetensors
    with explained(f"cannot write {path}"):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        file = open(temporary, "xb")  # noqa: SIM115
        try:
            with file:
                with contextlib.closing(
                    kind(file, shape, np.dtype(dtype), json.dumps(metadata))
                ) as writer:
                    yield writer
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


class _Npz:
    """NumPy's format: a zip archive of arrays, uncompressed."""

    def __init__(self, file, shape: tuple[int, ...], dtype: np.dtype, metadata: str):
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._metadata = metadata
        self._dtype = dtype
        self._features = self._archive.open("features.npy", "w", force_zip64=True)
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(self._features, header)

    def add(self, rows: np.ndarray) -> None:
        self._features.write(np.ascontiguousarray(rows, self._dtype))

    def finish(self, *, valid, keys, labels) -> None:
        self._features.close()
        arrays = {"valid": valid, "keys": np.array(keys, np.str_)}
        arrays |= {} if labels is None else {"labels": labels.astype(np.int32)}
        arrays["metadata"] = np.array(self._metadata)
        for name, array in arrays.items():
            with self._archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        self._archive.close()

    def close(self) -> None:
        # After a failure: an archive that is still open would tell of it when it is collected.
        with contextlib.suppress(OSError, ValueError):
            self._features.close()
            self._archive.close()


class _Safetensors:
    """The format of Hugging Face's safetensors: a JSON header, then one array after another.

    The header comes first and tells where everything ends, so its place is kept free until then.
    """

    def __init__(self, file, shape: tuple[int, ...], dtype: np.dtype, metadata: str):
        self._file, self._dtype, self._metadata = file, dtype, metadata
        self._sizes = {"features": (dtype, shape)}
        images = shape[0]
        largest = {
            **self._sizes,
            "labels": (np.dtype(np.int32), (images,)),
            "valid": (np.dtype(bool), (images,)),
            "keys": (np.dtype(np.uint8), (2**50,)),
        }
        self._room = -(-len(self._header(largest)) // 8) * 8
        file.write(self._room.to_bytes(8, "little") + b" " * self._room)

    def add(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype))

    def finish(self, *, valid, keys, labels) -> None:
        names = np.frombuffer(json.dumps(list(keys)).encode(), np.uint8)
        arrays = {} if labels is None else {"labels": labels.astype(np.int32)}
        for name, array in {**arrays, "valid": valid, "keys": names}.items():
            self._sizes[name] = (array.dtype, array.shape)
            self._file.write(np.ascontiguousarray(array))
        self._file.seek(8)
        self._file.write(self._header(self._sizes).ljust(self._room))

    def close(self) -> None:
        pass

    def _header(self, sizes: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
        described, end = {"__metadata__": {"xtra_jax": self._metadata}}, 0
        for name, (dtype, shape) in sizes.items():
            begin, end = end, end + int(np.prod(shape)) * dtype.itemsize
            described[name] = {
                "dtype": _SAFETENSORS_DTYPES[dtype.name],
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
        return json.dumps(described).encode()
