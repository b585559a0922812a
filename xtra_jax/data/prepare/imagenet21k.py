"""ImageNet-21k, the winter 2021 release: one tar of images per synset, or the same unpacked.

Records are sorted by synset and, within one, by file name; a label is the place of the synset in
their sorted list. A shard holds whole synsets, equally many in each (37 or 38 of 19,167), so that
nothing is indexed beforehand: a worker opens a tar, reads its headers and then its images, while
the system still holds the file in memory. What a process needs is the names of one synset, and of
one on gs:// the whole tar (0.5 GB at most).
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from etils import epath

from xtra_jax.data.prepare.plan import MAX_SHARDS, Example, Plan, fingerprint, reader_of
from xtra_jax.errors import RunFailed, UserError

VERSION = "1.0.0"
_SYNSET = re.compile(r"n\d{8}(\.tar)?")
_IMAGES = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True)
class SynsetRecords:
    """The images of some synsets.

    Attributes:
        folder: where the entries lie.
        entries: tars, or folders, named after the synsets.
        sizes: of the entries: bytes of a tar, images in a folder.
        labels: of the entries.
    """

    folder: str
    entries: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def source(self) -> str:
        return fingerprint(self.entries, self.sizes, self.labels)

    def __call__(self) -> Iterator[Example]:
        """Yields the images as they are, sorted by name within each synset.

        Raises:
            RunFailed: a tar is damaged or cut short, or something cannot be read.
        """
        for entry, label in zip(self.entries, self.labels, strict=True):
            path = os.path.join(self.folder, entry)
            images = _from_tar(path) if entry.endswith(".tar") else _from_folder(path)
            for name, image in images:
                yield Example(image, label, name)


def plan_imagenet21k(folder: epath.Path, synsets: int | None) -> Plan:
    """Plans the set from a folder of synsets' tars, or of synsets' folders.

    Args:
        folder: where n00004475.tar and so on lie, or the folders n00004475 and so on.
        synsets: how many there have to be; None to take what there is.

    Raises:
        UserError: there are none, or another number.
    """
    found = _find(folder)
    if synsets is not None and len(found) != synsets:
        raise UserError(
            f"{folder} holds {len(found):,} synsets in the place of {synsets:,}: complete it, or "
            "take it as it is with --partial"
        )
    entries = list(found.values())
    sizes = [_size(folder / entry) for entry in entries]
    unpacked = not any(entry.endswith(".tar") for entry in entries)
    return Plan(
        name="imagenet21k",
        version=VERSION,
        splits={"train": _shards(folder, entries, sizes)},
        class_names=tuple(found),
        description=(
            "ImageNet-21k, winter 2021 release, sorted by synset and file name; labels number the "
            "synsets in sorted order."
        ),
        images={"train": sum(sizes)} if unpacked else {},
    )


def is_synset(name: str) -> bool:
    """Whether a file or folder is named as a synset's."""
    return _SYNSET.fullmatch(name) is not None


def _find(folder: epath.Path) -> dict[str, str]:
    """Returns the file or folder of every synset, sorted by synset; a tar before a folder."""
    found: dict[str, str] = {}
    for name in sorted((path.name for path in folder.iterdir()), reverse=True):
        if is_synset(name):
            found.setdefault(name.removesuffix(".tar"), name)
    if not found:
        packed = [path.name for path in folder.iterdir() if path.name.startswith("winter21")]
        raise UserError(
            f"{folder} holds no synsets, such as n00004475.tar or a folder n00004475"
            + (f": unpack {packed[0]} there first" if packed else "")
        )
    return dict(sorted(found.items()))


def _size(path: epath.Path) -> int:
    """Returns the bytes of a tar, or how many images a folder holds."""
    if path.name.endswith(".tar"):
        return path.stat().length
    return sum(1 for _ in _names(os.fspath(path)))


def _shards(folder: epath.Path, entries: list[str], sizes: list[int]) -> list[SynsetRecords]:
    """Cuts the sorted synsets into shards.

    By their number, not their size: a tar that is fetched again must not move the others.
    """
    number = min(MAX_SHARDS, len(entries))
    edges = [i * len(entries) // number for i in range(number + 1)]
    return [
        SynsetRecords(
            str(folder),
            tuple(entries[start:stop]),
            tuple(sizes[start:stop]),
            tuple(range(start, stop)),
        )
        for start, stop in zip(edges, edges[1:], strict=False)
    ]


def _names(folder: str) -> Iterator[str]:
    if "://" in folder:
        names = (path.name for path in epath.Path(folder).iterdir())
    else:
        names = os.listdir(folder)
    return (name for name in names if name.lower().endswith(_IMAGES))


def _from_folder(path: str) -> Iterator[tuple[str, bytes]]:
    read = reader_of(path)
    for name in sorted(_names(path)):
        yield name, read(name)


def _from_tar(path: str) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of a tar's images, sorted by name."""
    try:
        with _open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
            # tarfile takes a damaged header for the end, which is a block of zeros.
            file.seek(_end(members[-1]) if members else 0)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is damaged or cut short")
            named = {os.path.basename(member.name): member for member in members if member.isfile()}
            for name in sorted(name for name in named if name.lower().endswith(_IMAGES)):
                member = named[name]
                file.seek(member.offset_data)
                data = file.read(member.size)
                if len(data) != member.size:
                    raise tarfile.ReadError(f"it is cut short within {name}")
                yield name, data
    except (OSError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFailed(
            f"{path} cannot be read to its end ({reason or error}): fetch it again; the shards "
            "that are finished are kept, and the same command continues once it can"
        ) from error


def _open(path: str) -> IO[bytes]:
    """Opens a file for reading here and there; a remote one is fetched whole."""
    return io.BytesIO(epath.Path(path).read_bytes()) if "://" in path else open(path, "rb")


def _end(member: tarfile.TarInfo) -> int:
    """Returns where a member's last block ends."""
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
