"""From a decoded image to the uint8 square the model sees.

The geometry is torchvision's to the pixel (which side is rounded how, what a crop does when no
attempt fits), because published numbers were obtained with it. Resizing is Pillow's bicubic filter,
which antialiases; see `xtra_jax.data.resize`. Randomness comes only from the generator that is
passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xtra_jax.data.decode import MAX_PIXELS, BadImage
from xtra_jax.data.resize import resize_exact, resizer
from xtra_jax.errors import UserError

CROP_ATTEMPTS = 10

# Most crops of images of 500 x 375 pixels, ImageNet's usual size, fit into it as they are.
CANVAS = 512


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
        resize: "exact" or "fast"; see `xtra_jax.data.resize`.
    """

    size: int
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.75, 1.5)
    flip: float = 0.5
    randaugment: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None
    resize: str = "exact"

    def __post_init__(self):
        if self.resize == "device":
            raise UserError(
                "data.resize=device is for pretraining alone, because other transforms need the "
                "resized crop on the host: take exact or fast."
            )
        resizer(self.resize)
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
        crop, flip = self.crop(np.asarray(image), rng)
        resized = resizer(self.resize)(crop, self.size, self.size, flip)
        if self.randaugment is not None:
            resized = np.array(self.randaugment(Image.fromarray(resized), rng))
        return resized

    def crop(self, pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """Draws the crop, a view of the pixels, and whether it is mirrored."""
        top, left, height, width = random_crop(*pixels.shape[:2], self.scale, self.ratio, rng)
        # Cut first, then resize: the filter must not see what lies outside the crop.
        return pixels[top : top + height, left : left + width], rng.random() < self.flip


@dataclass(frozen=True)
class DeviceResizeTransform:
    """The crops of a pretraining transform, left for the accelerator to resize.

    See `xtra_jax.data.device_resize`. A crop that is larger than the canvas is resized here.

    Attributes:
        pretrain: what draws the crops; their size in the end is its `size`.
        canvas: side of the square that every crop is put into, its top left corner first; 0 for
            `CANVAS`, or more where `pretrain.size` is.
    """

    pretrain: PretrainTransform
    canvas: int = 0

    def __post_init__(self):
        if self.pretrain.randaugment is not None:
            raise UserError(
                "RandAugment works on resized crops, so it cannot go with data.resize=device: take "
                "exact or fast."
            )
        if self.canvas and self.canvas < self.pretrain.size:
            raise UserError(
                f"A canvas of {self.canvas} pixels cannot hold crops of {self.pretrain.size}."
            )

    @property
    def size(self) -> int:
        """Side of the canvas, in pixels."""
        return self.canvas or canvas_side(self.pretrain.size)

    @property
    def blank(self) -> dict[str, np.ndarray]:
        """What stands for a bad image."""
        return self._placed(np.zeros((self.pretrain.size, self.pretrain.size, 3), np.uint8), False)

    def __call__(
        self, image: np.ndarray | Image.Image, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Maps uint8 `[height, width, 3]` to the canvas and the box.

        Returns:
            `image`, uint8 `[canvas, canvas, 3]`, zero outside the crop; and `box`, int32 `[3]`:
            the crop's height and width in pixels, and 1 if it is yet to be mirrored, 0 if not.
        """
        crop, flip = self.pretrain.crop(np.asarray(image), rng)
        if max(crop.shape) > self.size:
            side = self.pretrain.size
            crop, flip = resize_exact(crop, side, side, flip), False
        return self._placed(crop, flip)

    def _placed(self, crop: np.ndarray, flip: bool) -> dict[str, np.ndarray]:
        height, width, _ = crop.shape
        canvas = np.zeros((self.size, self.size, 3), np.uint8)
        canvas[:height, :width] = crop
        return {"image": canvas, "box": np.array([height, width, flip], np.int32)}


def canvas_side(size: int) -> int:
    """The side of the canvas for crops that become squares of side `size`."""
    return max(CANVAS, size)


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
        resized = resize_exact(pixels, height, width)
        top = round((height - self.size) / 2)
        left = round((width - self.size) / 2)
        return resized[top : top + self.size, left : left + self.size].copy()


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
