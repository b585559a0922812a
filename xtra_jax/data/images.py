"""Images that a user names: a folder, some files, or an array; each comes in once, in order.

An array is a file of NumPy's format, .npy:

* uint8 [images, height, width, 3], which are pixels as any image file has them;
* float32 or float64 [images, size, size, 3], which are taken as they are: normalised already, by
  the mean and the spread of each channel, and of the size that the model is to see.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xtra_jax.data.decode import BadImage
from xtra_jax.data.folder import FolderSource
from xtra_jax.data.pipeline import Batch, eval_batches
from xtra_jax.data.sources import Source
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import UserError


def open_images(paths: Sequence[str], split: str = "all") -> Source:
    """Opens one folder, one array, or any number of image files.

    Args:
        paths: as the user wrote them.
        split: of a folder, see `xtra_jax.data.folder`.

    Raises:
        UserError: something is missing, or not of these kinds.
    """
    paths = [os.path.expanduser(path) for path in paths]
    for path in paths:
        if not os.path.exists(path):
            raise UserError(
                f"{path} does not exist: --images takes a folder, image files, or an array (.npy)"
            )
    alone = len(paths) == 1
    if alone and os.path.isdir(paths[0]):
        return FolderSource(paths[0], split)
    if split != "all":
        raise UserError(f"--split={split} is of a data set or a folder, and {paths[0]} is a file")
    if alone and paths[0].endswith(".npy"):
        return ArraySource(paths[0])
    for path in paths:
        if os.path.isdir(path) or path.endswith(".npy"):
            raise UserError(
                f"{path} cannot be given among other images: give one folder, one array (.npy), "
                "or image files"
            )
    return FilesSource(paths)


class FilesSource:
    """Image files, in the order given; without labels. Their keys are their paths."""

    num_classes = None
    class_names = ()

    def __init__(self, paths: Sequence[str]):
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return self._paths[index]

    def files(self) -> Iterator[str]:
        return iter(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (the file's bytes), `label` (-1) and `key`.

        Raises:
            BadImage: the file cannot be read.
        """
        path = self._paths[index]
        try:
            with open(path, "rb") as file:
                return {"image": file.read(), "label": -1, "key": path}
        except OSError as error:
            raise BadImage(f"cannot be read ({error})") from error


class ArraySource:
    """The images of a .npy file, read from disk as they are asked for; their keys are numbers."""

    num_classes = None
    class_names = ()

    def __init__(self, path: str):
        """Opens the file.

        Raises:
            UserError: it cannot be read, or holds no images.
        """
        self._path = path
        try:
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            raise UserError(f"the array {path} cannot be read: {reason}") from error
        if not isinstance(self.array, np.ndarray):  # NumPy goes by what is in the file
            self.array.close()
            raise UserError(
                f"{path} is an archive of arrays (.npz) whatever its name: save one array of "
                "images with numpy.save"
            )
        shape, dtype = self.array.shape, self.array.dtype
        if len(shape) != 4 or shape[-1] != 3 or dtype not in ("uint8", "float32", "float64"):
            raise UserError(
                f"{path} is {dtype} {list(shape)}, and images are uint8 [images, height, width, 3] "
                "or, normalised already, float32 [images, size, size, 3]"
            )
        if not len(self.array):
            raise UserError(f"{path} holds no images")

    @property
    def normalised(self) -> bool:
        """Whether these are no longer pixels but what a model takes."""
        return self.array.dtype != np.uint8

    def __len__(self) -> int:
        return len(self.array)

    def key(self, index: int) -> str:
        return str(index)

    def files(self) -> Iterator[str]:
        return iter([self._path])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (the pixels as a PPM file), `label` (-1) and `key`."""
        pixels = np.ascontiguousarray(self.array[index])
        header = f"P6 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode()
        return {"image": header + pixels.tobytes(), "label": -1, "key": self.key(index)}

    def __reduce__(self):
        return ArraySource, (self._path,)  # a worker opens the file itself


def without_paths(dataset: str) -> str:
    """What data.dataset says, for others to read: a folder, but not where it lies."""
    return re.sub(r"folder:[^,]*", "folder", dataset)


def none_readable(count: int) -> str:
    """What to say where not one of so many images can be used."""
    return (
        "the only image cannot be read" if count == 1 else f"none of the {count} images can be read"
    )


def key_of(source: Source, index: int) -> str:
    """The name of a record, without reading it where the source knows it."""
    if hasattr(source, "key"):
        return source.key(index)
    try:
        return source[index]["key"]
    except BadImage:
        return f"#{index}"


@dataclass(frozen=True)
class UnlessOfSize:
    """The transform of validation, except that an image of the model's size stays as it is."""

    validation: EvalTransform

    @property
    def size(self) -> int:
        return self.validation.size

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Maps uint8 `[height, width, 3]` to uint8 `[size, size, 3]`."""
        if image.shape[:2] == (self.size, self.size):
            return image
        return self.validation(image, rng)


def each_image(
    source: Source,
    transform: UnlessOfSize,
    *,
    batch_size: int,
    num_workers: int = 0,
    prefetch: int = 2,
    shards: Sequence[int] = (0,),
    num_shards: int = 1,
) -> Iterator[Batch]:
    """Yields this process's share of batches that hold every image once, in order.

    Arguments and batches are those of `xtra_jax.data.pipeline.eval_batches`, but that the images
    of a source that is `normalised` already, with an `array`, are float32 and not transformed.

    Raises:
        UserError: such an array has images of another size, or is not normalised.
    """
    if getattr(source, "normalised", False):
        return _normalised_batches(source, transform.size, batch_size, shards, num_shards)
    return eval_batches(
        source,
        transform,
        batch_size=batch_size,
        num_workers=num_workers,
        prefetch=prefetch,
        shards=shards,
        num_shards=num_shards,
    )


def _normalised_batches(
    source: ArraySource, size: int, batch_size: int, shards: Sequence[int], num_shards: int
) -> Iterator[Batch]:
    array, rows = source.array, batch_size // num_shards
    if array.shape[1:3] != (size, size):
        raise UserError(
            f"the array has images of {array.shape[2]} x {array.shape[1]} pixels, and the model "
            f"takes {size} x {size}: floats are not resampled, uint8 images are"
        )
    for start in range(0, len(array), batch_size):
        first = np.concatenate([start + rows * shard + np.arange(rows) for shard in shards])
        there = first < len(array)
        images = np.zeros((len(first), size, size, 3), np.float32)
        images[there] = array[first[there]]
        if start == 0:
            refuse_unit_range(images[there])
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        images[~finite] = 0
        yield {
            "image": images,
            "label": np.full(len(first), -1, np.int32),
            "weight": (there & finite).astype(np.float32),
            "index": np.where(there, first, -1),
        }


def refuse_unit_range(images: np.ndarray) -> None:
    """UserError for floats in [0, 1], which have not been normalised: those are about 0."""
    if images.size and images.min() >= 0 and images.max() <= 1:
        raise UserError(
            "the array's floats lie in [0, 1], and are taken as normalised already, by the mean "
            "and spread of each channel: give uint8 pixels, or normalise them first"
        )
