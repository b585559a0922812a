"""The folder of an export: complete or not there, with a manifest of what is in it."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etils import epath

from xtra_jax.errors import UserError
from xtra_jax.training.storage import absolute, explained, is_local

MANIFEST = "manifest.json"
FORMAT = {"format": "xtra_jax export", "version": 1}
_TEMPORARY = ".xtra-export-tmp"
_REPLACED = ".xtra-export-old"


class Folder:
    """A folder being written, which knows the SHA-256 and the size of every file in it."""

    def __init__(self, path: epath.Path):
        self._path = path
        self.files: dict[str, dict[str, Any]] = {}

    @contextmanager
    def open(self, name: str) -> Iterator[io.RawIOBase]:
        """A new file, for bytes written one after another."""
        with (self._path / name).open("wb") as file:
            hashed = _Hashed(file)
            yield hashed
            file.flush()
            if is_local(self._path):
                os.fsync(file.fileno())
        self.files[name] = {"sha256": hashed.sha256.hexdigest(), "bytes": hashed.bytes}

    def write(self, name: str, content: str | bytes | bytearray) -> None:
        with self.open(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)


class _Hashed(io.RawIOBase):
    """What is written to it goes on to a file, and into a digest."""

    def __init__(self, file):
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self._file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)


def check_out(out: str, *, overwrite: bool) -> epath.Path:
    """The absolute path of a folder to export to.

    Raises:
        UserError: something is there already that an export must not replace.
    """
    if not out:
        raise UserError("--out is empty: name the folder to write")
    path = absolute(out)
    with explained(f"cannot write {out}"):
        if is_local(path):
            path = epath.Path(os.path.realpath(path))  # a link stays, and leads to the export
            here = os.path.realpath(os.getcwd())
            if os.path.commonpath([here, path]) == os.fspath(path):
                raise UserError(
                    f"--out={out} is the current folder or holds it, and would be moved away under "
                    "it: name a folder other than the current one"
                )
            _restore(path)
        if not path.exists():
            return path
        if not path.is_dir():
            raise UserError(f"--out={out} is a file: name a folder, which will hold several files")
        if not any(path.iterdir()):
            return path
        if not _is_export(path):
            raise UserError(
                f"--out={out} holds something else than an export, which is not for this command "
                "to replace: name a folder that does not exist"
            )
        if not overwrite:
            raise UserError(
                f"--out={out} holds an export already: name another folder, or add --overwrite"
            )
    return path


@contextmanager
def new_export(out: epath.Path, manifest: Mapping[str, Any]) -> Iterator[Folder]:
    """A folder to fill, which is in its place when it is whole, or not at all.

    Locally it has a temporary name until then; what it replaces is there until then. On an object
    store, which renames nothing, its manifest is removed first and written last, and a folder
    without one is no export.

    Args:
        out: where the folder is to be, as `check_out` returned it.
        manifest: what the manifest says beside the digests of the files.
    """
    local = is_local(out)
    staging = out.with_name(out.name + _TEMPORARY) if local else out
    with explained(f"cannot write {out}"):
        if not local:
            (out / MANIFEST).unlink(missing_ok=True)
        _remove(staging)  # what an export left that was killed
        staging.mkdir(parents=True)
        try:
            folder = Folder(staging)
            yield folder
            contents = {**FORMAT, **manifest, "files": folder.files}
            folder.write(MANIFEST, json.dumps(contents, indent=2, allow_nan=False) + "\n")
            if local:
                _put_in_place(staging, out)
        except BaseException:
            _remove(staging)
            raise


def _put_in_place(staging: epath.Path, out: epath.Path) -> None:
    old = out.with_name(out.name + _REPLACED)
    _remove(old)
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    _remove(old)


def _restore(out: epath.Path) -> None:
    """Puts back what an export was about to replace when it was killed."""
    old = out.with_name(out.name + _REPLACED)
    if old.exists() and not out.exists() and _is_export(old):
        old.rename(out)


def _remove(path: epath.Path) -> None:
    if path.exists():
        path.rmtree()


def _is_export(path: epath.Path) -> bool:
    try:
        found = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT["format"]
