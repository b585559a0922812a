"""Features that are computed once and kept in files, so that a second probe of them takes seconds.

There is one safetensors file for each encoder, transform, split and `FeatureSpec`. It holds

    features  float32 [images, width] or [images, tokens, width]
    label     int32 [images]
    weight    float32 [images], 0 of an image that could not be used

and in its metadata all that decides these numbers, which is held against what is asked for, and
their CRC-32. Files are written piece by piece, under a temporary name until they are whole, and
read by mapping them into memory: neither needs the memory that the features would take.

A job that trains and evaluates heads uses them so:

    kept = cached_features(config, folder, encoder, specs, source, transform)
    if kept is not None:  # they fit, and come out the same every time
        batches = kept.eval_batches(batch_size, shards, num_shards)  # or .train_batches(...)

These are the batches of `xtra_jax.data.pipeline`, but that instead of `image` they have an entry
for each spec, by its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from xtra_jax.data.ahead import say
from xtra_jax.data.bad_images import BadImages
from xtra_jax.data.contents import contents
from xtra_jax.data.settled import DRAWN, Settled, settled
from xtra_jax.data.sources import Source
from xtra_jax.errors import UserError
from xtra_jax.interop.archive import BadArchive, File
from xtra_jax.interop.safe import spans
from xtra_jax.parallel.consensus import text_from_the_first
from xtra_jax.probing.features import FeatureSpec
from xtra_jax.probing.frozen import FrozenEncoder
from xtra_jax.probing.kept import Kept
from xtra_jax.training.agreement import appears, check_shared
from xtra_jax.training.storage import absolute, is_local

_VERSION = 1  # of the files; another one is not read
_DTYPES = {"features": ("F32", "<f4"), "label": ("I32", "<i4"), "weight": ("F32", "<f4")}


def cached_features(
    config: ConfigDict,
    folder: os.PathLike | str,
    encoder: FrozenEncoder,
    specs: Sequence[FeatureSpec],
    source: Source,
    transform,
    *,
    num_workers: int = 0,
    prefetch: int = 2,
    bad_images: BadImages | None = None,
) -> Kept | None:
    """Features of a split: from files where these are there, else computed and kept in them.

    A file that is damaged, or of something else, is told of and made anew; a disk that takes no
    more is told of, too. Of a run of several processes all have to call it, and to see the same
    folder.

    Args:
        config: of a probe; its `cache` says how large features may be, and where they are kept.
        folder: of the run or the results that the files lie with, where the config names none.
        specs: which features; one pass makes all those files that are missing.
        transform: an `EvalTransform`, or what a training's images go through.

    Returns:
        None where the features are too large, the transform leaves something to chance, the
        folder is no local one and no other is named, or the files cannot be written.

    Raises:
        UserError: `cache.dir` is no local folder, or not one that all processes see.
        RunFailed: features are not finite.
    """
    fixed = settled(transform)
    shapes = {spec: encoder.shape(spec, len(source)) for spec in specs}
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    if fixed is None or size > config.cache.max_gib * 2**30:
        return None
    directory = absolute(config.cache.dir or absolute(folder) / "features")
    if not is_local(directory):  # and files to be mapped into memory have to be
        if not config.cache.dir:
            return None
        raise UserError(f"cache.dir={config.cache.dir} must be a local folder, or empty")
    images = text_from_the_first(contents(source) if jax.process_index() == 0 else "")
    files = {
        spec: _File.of(Path(directory), encoder, spec, source, images, fixed, shapes[spec])
        for spec in specs
    }
    found = {spec: file.read() for spec, file in files.items()}
    missing = [spec for spec in specs if not _everywhere(found[spec] is not None)]
    if missing:
        passed = encoder.features(
            missing,
            source,
            fixed,
            taken=(DRAWN,),
            num_workers=num_workers,
            prefetch=prefetch,
            bad_images=bad_images,
        )
        with contextlib.closing(passed):
            if not _written(passed, {spec: files[spec] for spec in missing}, Path(directory)):
                return None
        found |= {spec: files[spec].read_again() for spec in missing}
    features = {spec: arrays["features"] for spec, arrays in found.items()}
    first = found[specs[0]]
    return Kept(source, features, first["label"], first["weight"])


def _everywhere(holds: bool) -> bool:
    """Whether it holds in every process."""
    if jax.process_count() == 1:
        return holds
    return bool(multihost_utils.process_allgather(np.int32(holds)).all())


def _written(
    passed: Iterator[dict[str, np.ndarray]], files: dict[FeatureSpec, _File], directory: Path
) -> bool:
    """Writes the files, which the first process does; False where they are not kept.

    That is where an image came out by chance; and where the disk refuses, which is told.
    """
    first, refused = jax.process_index() == 0, []

    def attempt(write: Callable[[], None]) -> None:
        if not first or refused:
            return
        try:
            write()
        except OSError as error:
            refused.append(error)
            reason = error.strerror or error
            say(f"features are not kept in {directory}, and the run goes on without: {reason}.")

    with contextlib.ExitStack() as stack:
        writers: dict[FeatureSpec, _Writer] = {}
        label, weight = [], []

        def begin() -> None:
            directory.mkdir(parents=True, exist_ok=True)
            for spec, file in files.items():
                writers[spec] = stack.enter_context(file.writer())
            size = sum(4 * math.prod(file.shape) for file in files.values())
            if shutil.disk_usage(directory).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def add(rows: dict[str, np.ndarray]) -> None:
            for spec, writer in writers.items():
                writer.add(rows[spec.name])

        def finish() -> None:
            for writer in writers.values():
                writer.add(np.concatenate(label), "<i4")
                writer.add(np.concatenate(weight))
                writer.finish()

        attempt(begin)
        if not _everywhere(not refused):
            return False
        check_shared(absolute(directory), "a cache.dir that all hosts share, or cache.max_gib=0")
        for rows in passed:
            if rows[DRAWN].any():
                return False
            label.append(rows["label"])
            weight.append(rows["weight"])
            attempt(partial(add, rows))
            if refused and jax.process_count() == 1:  # others wait for the whole pass
                return False
        attempt(finish)
    return _everywhere(not refused)


@dataclasses.dataclass(frozen=True)
class _File:
    """Where features are kept, and what has to be in there.

    Attributes:
        described: all that decides them, as JSON.
        shape: theirs.
    """

    path: Path
    described: str
    shape: tuple[int, ...]

    @classmethod
    def of(
        cls,
        folder: Path,
        encoder: FrozenEncoder,
        spec: FeatureSpec,
        source: Source,
        images: str,
        transform: Settled,
        shape: tuple[int, ...],
    ) -> _File:
        """Images are told apart by `xtra_jax.data.contents.contents` of the source."""
        described = json.dumps(
            {
                "format": "xtra_jax kept features",
                "version": _VERSION,
                **encoder.described(),
                "features": dataclasses.asdict(spec),
                "transform": repr(transform.transform),
                "images": len(source),
                "contents": images,
            }
        )
        name = f"{spec.name}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.safetensors"
        return cls(folder / name, described, shape)

    def read(self) -> dict[str, np.ndarray] | None:
        """The arrays, mapped into memory; None where there is no such file, or not a whole one."""
        try:
            return self._mapped() if self.path.is_file() else None
        except (BadArchive, OSError) as error:
            say(f"{self.path} is not used, and made anew: {error}.")
            return None

    def read_again(self) -> dict[str, np.ndarray]:
        """What has just been written, here or by another process.

        Raises:
            UserError: that is not what comes back.
        """
        appears(absolute(self.path))
        found = self.read()
        if found is None:
            raise UserError(
                f"{self.path} was written, and does not come back as it was: name another folder "
                "with cache.dir, or keep no features with cache.max_gib=0"
            )
        return found

    def _mapped(self) -> dict[str, np.ndarray]:
        with contextlib.closing(File(self.path)) as file:
            found, metadata, _ = spans(file)
            if metadata.get("xtra_jax") != self.described:
                raise BadArchive("it holds other features than its name says")
            sizes = {name: (span.shape, span.dtype.str) for name, span in found.items()}
            if sizes != {name: (shape, _DTYPES[name][1]) for name, shape in self._shapes().items()}:
                raise BadArchive("its arrays are not of the right shapes")
            begin = min(span.start for span in found.values())
            if f"{file.crc(begin, file.size - begin):08x}" != metadata.get("crc32"):
                raise BadArchive("its bytes are not those that were written")
        return {
            name: np.memmap(self.path, span.dtype, "r", span.start, span.shape)
            for name, span in found.items()
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        images = self.shape[:1]
        return {"features": self.shape, "label": images, "weight": images}

    def header(self, crc: int) -> bytes:
        """The file's beginning, of the same length for every checksum."""
        metadata = {"xtra_jax": self.described, "crc32": f"{crc:08x}"}
        told, end = {"__metadata__": metadata}, 0
        for name, shape in self._shapes().items():
            begin, end = end, end + 4 * math.prod(shape)
            told[name] = {
                "dtype": _DTYPES[name][0],
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(told).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        return len(text).to_bytes(8, "little") + text

    @contextlib.contextmanager
    def writer(self) -> Iterator[_Writer]:
        """Takes the arrays' bytes; the file gets its name if it was finished, and else goes."""
        self._remove_abandoned()
        temporary = self.path.with_name(f"{self.path.name}.{_here()}{os.getpid()}.tmp")
        writer = _Writer(temporary, self)
        try:
            yield writer
        finally:
            writer.close()
            temporary.unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        """What processes of this host left behind that were killed while they wrote this file."""
        for file in self.path.parent.glob(f"{self.path.name}.{_here()}*.tmp"):
            process = file.name.removesuffix(".tmp").rpartition("-")[2]
            if process.isdigit() and not _runs(int(process)):
                file.unlink(missing_ok=True)


class _Writer:
    """Writes a file's arrays one after another, and its header in the end."""

    def __init__(self, temporary: Path, file: _File):
        self._temporary, self._file = temporary, file
        self._crc = 0
        self._opened = open(temporary, "wb")  # noqa: SIM115 - see `close`
        self._opened.write(file.header(0))

    def add(self, rows: np.ndarray, dtype: str = "<f4") -> None:
        data = np.ascontiguousarray(rows, dtype).reshape(-1).view(np.uint8)
        self._crc = zlib.crc32(data, self._crc)
        self._opened.write(data)

    def finish(self) -> None:
        self._opened.seek(0)
        self._opened.write(self._file.header(self._crc))
        self._opened.flush()
        os.fsync(self._opened.fileno())
        self._temporary.replace(self._file.path)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a file that is not kept: a whole one is written
            self._opened.close()


def _here() -> str:
    """What tells this host's temporary files from another's."""
    return f"{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}-"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True
