"""The published input pipeline: Pillow, torchvision's random resized crop, float32, normalised.

With PyTorch and torchvision where they are installed, otherwise the same arithmetic in NumPy.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from xtra_jax.data.transforms import random_crop

SIZE = 224
SCALE, RATIO, FLIP = (0.3, 1.0), (0.75, 1.5), 0.5
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def published(data: bytes, rng: np.random.Generator, as_float: bool = True):
    """Encoded bytes to float32 `[3, 224, 224]`, with the random draws of our own pipeline.

    With `as_float` off to uint8 of that shape, as an expert may who normalises on the accelerator.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    crop = random_crop(image.height, image.width, SCALE, RATIO, rng)
    flip = rng.random() < FLIP
    if _torchvision() is None:
        return _with_numpy(image, crop, flip, as_float)
    transforms = _torchvision().transforms
    bicubic = transforms.InterpolationMode.BICUBIC
    image = transforms.functional.resized_crop(image, *crop, [SIZE, SIZE], bicubic)
    if flip:
        image = transforms.functional.hflip(image)
    if not as_float:
        return transforms.functional.pil_to_tensor(image)
    tensor = transforms.functional.to_tensor(image)
    return transforms.functional.normalize(tensor, MEAN.tolist(), STD.tolist(), inplace=True)


def _with_numpy(image: Image.Image, crop: tuple[int, ...], flip: bool, as_float: bool):
    top, left, height, width = crop
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    if not as_float:
        return pixels
    pixels = pixels.astype(np.float32) / np.float32(255)
    pixels -= MEAN[:, None, None]
    pixels /= STD[:, None, None]
    return pixels


def grey_levels(image) -> np.ndarray:
    """What `published` returns as float32, back to uint8 `[224, 224, 3]`."""
    pixels = np.asarray(image).transpose(1, 2, 0)
    return np.rint((pixels * STD + MEAN) * 255).astype(np.uint8)


def by_what() -> str:
    torchvision = _torchvision()
    if torchvision is None:
        return "Pillow and NumPy; PyTorch and torchvision are not installed"
    return f"Pillow, torchvision {torchvision.__version__}, torch {_torch().__version__}"


def have_torch() -> bool:
    return _torchvision() is not None


@functools.cache
def _torch():
    import torch

    torch.set_num_threads(1)  # as in a worker of a DataLoader
    return torch


@functools.cache
def _torchvision():
    try:
        _torch()
        import torchvision
    except ImportError:
        return None
    return torchvision


def loader_batches(folder: Path, batch_size: int, workers: int, as_float: bool) -> Iterator[tuple]:
    """Batches of a PyTorch DataLoader over the files of a folder, without end.

    Workers persist, prefetch, and use one thread each. There is no GPU to pin memory for.
    """
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _Files(folder, as_float),
        batch_size,
        shuffle=True,
        num_workers=workers,
        prefetch_factor=2,
        persistent_workers=True,
        drop_last=True,
        multiprocessing_context="spawn",
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


class _Files:
    """A map-style data set, long enough for no epoch to end while it is timed."""

    def __init__(self, folder: Path, as_float: bool):
        self._paths = sorted(folder.rglob("*.jpg"))
        self._as_float = as_float

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> tuple:
        data = self._paths[index % len(self._paths)].read_bytes()
        rng = np.random.default_rng((0, index))
        return published(data, rng, self._as_float), 0
