"""What a data set of ours will hold: its splits, cut into shards before anything is written.

Which record lands in which shard follows from the source alone, so every shard can be written by
any process, in any order and again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from etils import epath

from xtra_jax.errors import RunFailed

# TFDS data sets of this many files still open all of them within the usual limit of 1,024.
MAX_SHARDS = 512
RECORDS_PER_SHARD = 2048


@dataclass(frozen=True)
class Example:
    """One record: an encoded image, its label, its name in the source (empty where it has none)."""

    image: bytes
    label: int
    file_name: str = ""


class Records(Protocol):
    """The records of one shard, in order. Travels to a worker process, and reads there.

    Attributes:
        source: a digest of what they are read from, so that a restart does not mix two sources.
    """

    source: str

    def __call__(self) -> Iterator[Example]: ...


@dataclass(frozen=True)
class Plan:
    """A data set that is to be written.

    Attributes:
        name: of the data set, as TFDS and `data.dataset` have it.
        version: "major.minor.patch".
        splits: for each split its shards.
        class_names: by label.
        description: what it is and how it was made.
        config: TFDS's second part of a name, as in NAME/CONFIG; empty for none.
        image_format: "jpeg" or "png" where all images are, else empty.
        file_names: whether the records keep the images' names in the source.
        images: how many each split has, where that is known without reading them.
        left_out: images that the metadata name and the source lacks.
    """

    name: str
    version: str
    splits: dict[str, Sequence[Records]]
    class_names: tuple[str, ...]
    description: str
    config: str = ""
    image_format: str = ""
    file_names: bool = True
    images: dict[str, int] = field(default_factory=dict)
    left_out: int = 0

    @property
    def dataset(self) -> str:
        """The name that `data.dataset` takes."""
        return f"{self.name}/{self.config}" if self.config else self.name

    def directory(self, data_dir: epath.Path) -> epath.Path:
        """The folder of the prepared set: NAME/VERSION or NAME/CONFIG/VERSION below `data_dir`."""
        return data_dir.joinpath(*self.dataset.split("/"), self.version)


@dataclass(frozen=True)
class FileRecords:
    """Image files below a folder, each with its label."""

    folder: str
    files: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def source(self) -> str:
        return fingerprint(self.files, self.labels)

    def __call__(self) -> Iterator[Example]:
        """Yields the files' bytes as they are.

        Raises:
            RunFailed: a file cannot be read.
        """
        read = reader_of(self.folder)
        for file, label in zip(self.files, self.labels, strict=True):
            yield Example(read(file), label, file)


def reader_of(folder: str) -> Callable[[str], bytes]:
    """Returns a function from the path of a file below a folder, local or remote, to its bytes."""
    local = "://" not in folder  # opening local files through epath costs more than reading them

    def read(file: str) -> bytes:
        path = os.path.join(folder, file)
        try:
            if not local:
                return epath.Path(path).read_bytes()
            with open(path, "rb") as opened:
                return opened.read()
        except OSError as error:
            raise RunFailed(
                f"the image {path} cannot be read ({error.strerror or error}); the same command "
                "continues once it can"
            ) from error

    return read


@dataclass
class Rows:
    """The images of one split as they are found, in order."""

    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, file: str, label: int) -> None:
        self.files.append(file)
        self.labels.append(label)

    def shards(self, folder: str) -> list[FileRecords]:
        """Cuts them into shards of nearly equal length."""
        number = len(self.files)
        shards = min(MAX_SHARDS, -(-number // RECORDS_PER_SHARD))
        edges = [i * number // shards for i in range(shards + 1)] if shards else []
        return [
            FileRecords(folder, tuple(self.files[start:stop]), tuple(self.labels[start:stop]))
            for start, stop in zip(edges, edges[1:], strict=False)
        ]


def fingerprint(*columns: Sequence[str | int]) -> str:
    """Returns a digest of a table, from columns of equal length without line breaks."""
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        digest.update(" ".join(map(str, row)).encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()
