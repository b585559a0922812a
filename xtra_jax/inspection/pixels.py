"""Mean and spread of the pixels that the model sees, before and after normalisation."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from xtra_jax.model.patches import normalise_patches

CHANNELS = ("red", "green", "blue")
MOST_IMAGES = 1024
_AT_ONCE = 8  # images, in float64

_normalise = jax.jit(normalise_patches, static_argnums=(1, 2))


@dataclasses.dataclass(frozen=True)
class PixelStatistics:
    """Each is [3]: red, green, blue.

    Attributes:
        mean, spread: of pixels in [0, 1]; the spread is the standard deviation.
        normalised_mean, normalised_spread: of what the device makes of them.
        images: how many were measured.
    """

    mean: np.ndarray
    spread: np.ndarray
    normalised_mean: np.ndarray
    normalised_spread: np.ndarray
    images: int

    @property
    def distance(self) -> float:
        """How far normalised pixels are from mean 0 and spread 1, in the worst channel.

        The larger of the mean's size and the size of the logarithm of the spread.
        """
        spread = np.log(np.maximum(self.normalised_spread, 1e-9))
        return float(np.abs([self.normalised_mean, spread]).max())


class PixelMeter:
    """Adds up pixels, before and after the normalisation that is part of the train step."""

    def __init__(self, mean, std):
        self._mean, self._std = tuple(mean), tuple(std)
        self._images = self._pixels = 0
        self._sums = np.zeros((4, 3))

    def add(self, images: np.ndarray) -> None:
        """Takes uint8 [batch, size, size, 3]; from some number on no more are needed."""
        if self._images >= MOST_IMAGES:
            return
        self._images += len(images)
        self._pixels += images.size // 3
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE].reshape(-1, images[0].size)
            self._add(0, some / 255)
            self._add(2, np.float64(_normalise(some, self._mean, self._std)))

    def _add(self, row: int, values: np.ndarray) -> None:
        values = values.reshape(-1, 3)
        self._sums[row] += values.sum(axis=0)
        self._sums[row + 1] += (values**2).sum(axis=0)

    def result(self) -> PixelStatistics | None:
        """None where nothing was added."""
        if not self._images:
            return None
        mean, square, normalised_mean, normalised_square = self._sums / self._pixels
        return PixelStatistics(
            mean,
            np.sqrt(np.maximum(square - mean**2, 0)),
            normalised_mean,
            np.sqrt(np.maximum(normalised_square - normalised_mean**2, 0)),
            self._images,
        )
