"""A folder of image files as a data set, with or without class subfolders.

Which images a split names:

* If the folder has a subfolder named after a split ("train", "validation", "val", "test", "eval"),
  splits are subfolders, and the one asked for has to exist. "val" and "validation" are synonyms.
* Otherwise "all" names every image, and one image in ten (at least one) is held out: "train"
  names the others, and "validation", "val", "test" and "eval" all name those held out. They are
  the ones whose relative paths have the smallest SHA-256 digests, so the choice depends on nothing
  but names, and images added later hardly move it.

Labels: when every image lies in a subfolder, the subfolders are the classes, numbered in the order
of their names; the subfolders of all splits are counted together, so that a label means the same
in each. Otherwise labels are unknown (-1).
"""

from __future__ import annotations

import hashlib
import heapq
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from xtra_jax.data.decode import BadImage
from xtra_jax.data.record_index import RecordIndex
from xtra_jax.errors import UserError

EXTENSIONS = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff")
EXTENSIONS += (".webp",)
HELD_OUT = ("validation", "val", "test", "eval")
SYNONYMS = {"val": "validation", "validation": "val"}


class FolderSource:
    """The image files below a folder, in the order of their relative paths.

    Hidden files and folders are passed over; links are followed.

    Attributes:
        class_names: names of the classes, empty where labels are unknown.
        num_classes: how many classes, None where labels are unknown.
    """

    def __init__(self, path: str, split: str):
        """Lists the images of one split.

        Raises:
            UserError: the folder is missing or cannot be read, has no such split, or the split
                has no images.
        """
        path = os.path.abspath(os.path.expanduser(path))
        splits = [name for name in _subfolders(path) if name in ("train", *HELD_OUT)]
        if split == "all":
            splits = []
        self._root = os.path.join(path, _split_folder(path, split, splits)) if splits else path
        files = _list_images(self._root)
        if not files:
            raise UserError(
                f"The folder {self._root} holds no images; "
                f"expected files ending in {', '.join(EXTENSIONS)}."
            )
        labelled = all("/" in name for name in files)
        roots = [os.path.join(path, name) for name in splits] or [path]
        classes = sorted({name for root in roots for name in _subfolders(root)} if labelled else ())
        number = {name: label for label, name in enumerate(classes)}
        self.class_names = tuple(classes)
        self.num_classes = len(classes) or None
        files = files if splits else _part(path, files, split)
        labels = (number.get(name.split("/")[0], -1) for name in files)
        self._labels = np.fromiter(labels, np.int32, len(files))
        self._files = Names(files)

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        """Returns the name of an image: its path in the folder."""
        return self._files[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (the file's bytes), `label` (-1 where unknown) and `key` (its path).

        Raises:
            BadImage: the file cannot be read.
        """
        name = self._files[index]
        try:
            with open(os.path.join(self._root, name), "rb") as file:
                image = file.read()
        except OSError as error:
            raise BadImage(f"cannot be read ({error})") from error
        return {"image": image, "label": int(self._labels[index]), "key": name}

    def where(self, index: int) -> str:
        """Returns the file's path."""
        return os.path.join(self._root, self._files[index])

    def index(self) -> RecordIndex:
        """Keys and labels of all images, in order."""
        keys = np.array([os.fsencode(name) for name in self._files], np.bytes_)
        return RecordIndex(keys, np.array(self._labels, np.int32))

    def files(self) -> Iterator[str]:
        """Their paths."""
        return map(self.where, range(len(self)))

    def digest(self) -> str:
        """A text that changes when the images' names, their order or their labels do."""
        names = hashlib.sha256("\n".join(self.class_names).encode(errors="surrogateescape"))
        self._files.add_to(names)
        return names.hexdigest()


class Names(Sequence[str]):
    """File names, kept in two arrays: millions of strings would take three times the memory.

    The 13.2 million of ImageNet-21k, of 28 letters each, take 0.42 GB, and their labels 0.05 GB.
    Worker processes share the arrays (see `xtra_jax.data.shared_memory`).
    """

    def __init__(self, names: Iterable[str]):
        encoded, ends = bytearray(), array("q")
        for name in names:
            encoded += os.fsencode(name)
            ends.append(len(encoded))
        self._encoded = np.frombuffer(encoded, np.uint8)
        smallest = np.uint32 if len(encoded) < 2**32 else np.int64
        self._ends = np.frombuffer(ends, np.int64).astype(smallest)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        begin = self._ends[index - 1] if index else 0
        return os.fsdecode(self._encoded[begin : self._ends[index]].tobytes())

    @property
    def nbytes(self) -> int:
        """The memory that the names take."""
        return self._encoded.nbytes + self._ends.nbytes

    def add_to(self, digest) -> None:
        """Adds the names and their order to a digest of `hashlib`."""
        digest.update(self._ends)
        digest.update(self._encoded)


def _subfolders(path: str) -> list[str]:
    """Returns the names of the folders in `path` that are not hidden, sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise _unreadable(error) from error


def _split_folder(path: str, split: str, splits: list[str]) -> str:
    """Returns the name of the subfolder that holds the split."""
    for name in (split, SYNONYMS.get(split)):
        if name in splits:
            return name
    raise UserError(f"The folder {path} has no split {split!r}; it has {', '.join(splits)}.")


def _list_images(root: str) -> list[str]:
    """Returns the paths of all images below `root`, relative, with "/", in sorted order."""

    def fail(error: OSError):
        raise _unreadable(error) from error

    found = []
    visited = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in visited:  # A link to a folder that was already listed, perhaps a parent.
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        prefix = prefix.removeprefix("./")
        found += [
            prefix + name
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def _part(path: str, files: list[str], split: str) -> list[str]:
    """Returns the files of a split of a folder that has no subfolders for splits."""
    if split == "all":
        return files
    if split != "train" and split not in HELD_OUT:
        raise UserError(
            f"The folder {path} has no split {split!r}; a folder of images has "
            f"all, train, {', '.join(HELD_OUT)}."
        )
    if len(files) < 2:
        raise UserError(
            f"The folder {path} holds a single image, which cannot be divided into images to train "
            "on and images held out; ask for the split 'all'."
        )
    held_out = set(
        heapq.nsmallest(
            max(1, len(files) // 10),
            files,
            key=lambda name: hashlib.sha256(os.fsencode(name)).digest(),
        )
    )
    return [name for name in files if (name in held_out) == (split != "train")]


def _unreadable(error: OSError) -> UserError:
    return UserError(
        f"The folder of images {error.filename} cannot be read "
        f"({error.strerror}); expected a folder that exists and may be listed."
    )
