"""JPEGs like ImageNet's, 500 x 375 pixels in about 110 KB, made from photographs in two wheels.

The photographs are those that scikit-learn (two) and scikit-image (eight, where it is installed)
carry with them. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT = 500, 375
BYTES = 110_000

_SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


def make_jpegs(count: int, seed: int = 0) -> list[bytes]:
    """Random cuts of the photographs, each brought to the size and then, by its quality, the bytes.

    Chroma is subsampled 4:2:0, as it is in nearly all of ImageNet.
    """
    rng = np.random.default_rng(seed)
    photographs = _photographs()
    return [_jpeg(_cut(photographs[i % len(photographs)], rng)) for i in range(count)]


def _photographs() -> list[Image.Image]:
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    package = importlib.util.find_spec("skimage")
    if package is not None:
        folder = Path(package.origin).parent / "data"
        images += [Image.open(folder / name).convert("RGB") for name in _SCIKIT_IMAGE]
    return images


def _cut(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of at least three quarters of the photograph's extent, in the final proportions."""
    largest = min(image.width / WIDTH, image.height / HEIGHT)
    scale = largest * rng.uniform(0.75, 1)
    left = rng.uniform(0, image.width - scale * WIDTH)
    top = rng.uniform(0, image.height - scale * HEIGHT)
    box = (left, top, left + scale * WIDTH, top + scale * HEIGHT)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)


def _jpeg(image: Image.Image) -> bytes:
    low, high = 50, 100  # qualities; the bytes grow with them
    while low < high:
        quality = (low + high) // 2
        if len(_encoded(image, quality)) < BYTES:
            low = quality + 1
        else:
            high = quality
    nearest = (_encoded(image, quality) for quality in (low - 1, low))
    return min(nearest, key=lambda data: abs(len(data) - BYTES))


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()
