"""RandAugment on PIL images, in the variant that timm calls `rand-m9-mstd0.5-inc1`.

Two operations are drawn, with replacement, uniformly from fifteen; each is applied with probability
one half, at a magnitude drawn from a normal distribution around 9 (spread 0.5) and clipped to
[0, 10]. "inc" means that every operation grows stronger with the magnitude. Geometric operations
sample bicubically, as the published recipe's resizing does, and fill what they uncover with the
data set's mean colour. Every operation gives timm's pixels at every magnitude
(tests/data/test_against_timm.py).

RandAugment: Cubuk et al., 2020, arXiv 1909.13719.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Color = tuple[int, int, int]

MAX_MAGNITUDE = 10.0


@dataclass(frozen=True)
class RandAugment:
    """Callable that augments an RGB PIL image of any size.

    Attributes:
        mean: mean colour of the data set, RGB in [0, 1].
        magnitude: mean magnitude, in [0, 10].
        spread: standard deviation of the magnitude.
        count: operations drawn per image.
        probability: of applying each operation drawn.
    """

    mean: tuple[float, float, float]
    magnitude: float = 9.0
    spread: float = 0.5
    count: int = 2
    probability: float = 0.5

    @property
    def fill(self) -> Color:
        """The mean colour in grey levels."""
        return tuple(min(255, round(255 * channel)) for channel in self.mean)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for _ in range(self.count):
            operation = NAMES[rng.integers(len(NAMES))]
            applied = rng.random() < self.probability
            magnitude = np.clip(rng.normal(self.magnitude, self.spread), 0, MAX_MAGNITUDE)
            sign = rng.choice((-1.0, 1.0))
            if applied:
                strength = float(sign * magnitude / MAX_MAGNITUDE)
                image = OPERATIONS[operation](image, strength, self.fill)
        return image


def _auto_contrast(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return image.rotate(30 * strength, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterize(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    """Keeps the 4 to 0 highest bits. Pillow 13 refuses to keep none, so the mask is our own."""
    bits = 4 - int(abs(strength) * 4)
    mask = (0xFF << (8 - bits)) & 0xFF
    return image.point([level & mask for level in range(256)] * 3)


def _solarize(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    """Inverts the levels from a threshold up, which falls from 256 (none) to 0 (all)."""
    return ImageOps.solarize(image, 256 - int(abs(strength) * 256))


def _solarize_add(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    """Brightens the levels below 128 by up to 110."""
    addend = int(abs(strength) * 110)
    table = [min(255, level + addend) if level < 128 else level for level in range(256)]
    return image.point(table * 3)


def _enhance(enhancer: type) -> Callable[[Image.Image, float, Color], Image.Image]:
    """Returns an operation with a factor between 0.1 and 1.9, where 1 is the image itself."""

    def operation(image: Image.Image, strength: float, fill: Color) -> Image.Image:
        return enhancer(image).enhance(max(0.1, 1 + 0.9 * strength))

    return operation


def _shear_x(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), fill)


def _shear_y(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), fill)


def _translate_x(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), fill)


def _translate_y(image: Image.Image, strength: float, fill: Color) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), fill)


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Color) -> Image.Image:
    """Samples the image where the matrix sends each output pixel."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill
    )


# An operation maps (image, strength, fill) to an image of the same size. The strength is the
# magnitude over 10 with a random sign, in [-1, 1]; where direction means nothing, its size counts.
OPERATIONS: dict[str, Callable[[Image.Image, float, Color], Image.Image]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
NAMES = tuple(OPERATIONS)
