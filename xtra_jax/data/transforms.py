"""From a decoded image to the uint8 square the model sees.

The geometry is torchvision's to the pixel (which side is rounded how, what a crop does when no
attempt fits), because published numbers were obtained with it. Resizing is Pillow's bicubic filter,
which antialiases. Randomness comes only from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xtra_jax.data.decode import MAX_PIXELS, BadImage
from xtra_jax.errors import UserError

CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class PretrainTransform:
    """Random resized crop, then a horizontal flip, then RandAugment where it is given.

    Pretraining uses it without RandAugment; probes use it with their own crop range.

    Attributes:
        size: side of the result, in pixels.
        scale: smallest and largest share of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop.
        flip: probability of mirroring left and right.
        randaugment: called as `randaugment(image, generator)` on the PIL image of the crop, and
            returns one of the same size.
    """

    size: int
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.75, 1.5)
    flip: float = 0.5
    randaugment: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None

    def __post_init__(self):
        _check_size("the image size", self.size)
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise UserError(f"A crop's share of the area lies in (0, 1], got {low} to {high}.")
        low, high = self.ratio
        if not 0 < low <= high:
            raise UserError(f"A crop's aspect ratios are positive and ordered, got {low}, {high}.")
        if not 0 <= self.flip <= 1:
            raise UserError(f"The probability of a flip lies in [0, 1], got {self.flip}.")

    def __call__(self, image: np.ndarray | Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Maps uint8 `[height, width, 3]` (or an RGB PIL image) to uint8 `[size, size, 3]`."""
        pixels = np.asarray(image)
        top, left, height, width = random_crop(*pixels.shape[:2], self.scale, self.ratio, rng)
        # Cut first, then resize: the filter must not see what lies outside the crop.
        crop = Image.fromarray(pixels[top : top + height, left : left + width])
        crop = crop.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if rng.random() < self.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.randaugment is not None:
            crop = self.randaugment(crop, rng)
        return np.array(crop)


@dataclass(frozen=True)
class EvalTransform:
    """The shorter side resized to `resize`, then the central square of side `size`."""

    resize: int
    size: int

    def __post_init__(self):
        _check_size("the image size", self.size)
        if self.resize < self.size:
            raise UserError(
                f"Evaluation resizes the shorter side to {self.resize}, which is less than the "
                f"{self.size} pixels cropped from it; data.eval_resize must be at least that."
            )

    def __call__(
        self, image: np.ndarray | Image.Image, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Maps uint8 `[height, width, 3]` (or an RGB PIL image) to uint8 `[size, size, 3]`.

        Raises:
            BadImage: the image is so elongated that resizing it would fill the memory.
        """
        pixels = np.asarray(image)
        height, width = resized_shape(*pixels.shape[:2], self.resize)
        if height * width > MAX_PIXELS:
            raise BadImage(f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too elongated")
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        top = round((height - self.size) / 2)
        left = round((width - self.size) / 2)
        return np.array(resized.crop((left, top, left + self.size, top + self.size)))


def random_crop(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws the crop of a random resized crop.

    The area is uniform over `scale`, the aspect ratio log-uniform over `ratio`, the place uniform.
    After ten attempts that do not fit it is the largest central crop within `ratio`.

    Returns:
        `(top, left, height, width)`, in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = max(1, min(width, round(height * aspect)))
    crop_height = max(1, min(height, round(width / aspect)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resized_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns the `(height, width)` with the given shorter side; the longer one rounds down."""
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def _check_size(what: str, size: int) -> None:
    if size < 1:
        raise UserError(f"Expected {what} to be at least one pixel, got {size}.")
