"""Random erasing on the device, inside the jitted step, after normalisation.

Random erasing: Zhong et al., 2020, arXiv 1708.04896, in timm's variant with one rectangle of
noise (`pixel` mode).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

ATTEMPTS = 10


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """Replaces one rectangle in some of the images by standard normal noise.

    Args:
        key: a PRNG key; use a fresh one for every step.
        images: normalised pixels `[batch, height, width, channels]`, floating point.
        probability: of erasing in an image.
        area: smallest and largest share of the image that is erased, drawn uniformly.
        aspect: smallest and largest height / width of the rectangle, drawn log-uniformly.

    Returns:
        Images of the same shape and dtype.
    """
    where, noise = jax.random.split(key)
    batch, height, width, _ = images.shape
    erased = random_rectangles(where, batch, height, width, probability, area, aspect)
    pixels = jax.random.normal(noise, images.shape, images.dtype)
    return jnp.where(erased[..., None], pixels, images)


def random_rectangles(
    key: jax.Array,
    batch: int,
    height: int,
    width: int,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> jax.Array:
    """Draws, with the given probability, a rectangle for each image.

    Of ten drawn shapes the first is taken that is smaller than the image in both directions; where
    none is, the rectangle is empty.

    Returns:
        Boolean mask `[batch, height, width]`, true inside.
    """
    # One draw for everything: each call of the generator is compiled separately.
    draws = jax.random.uniform(key, (batch, 2 * ATTEMPTS + 3))
    areas, aspects, rest = jnp.split(draws, (ATTEMPTS, 2 * ATTEMPTS), axis=1)
    chosen, top, left = jnp.split(rest, 3, axis=1)
    pixels = height * width * (area[0] + (area[1] - area[0]) * areas)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = jnp.exp(low + (high - low) * aspects)
    tall = jnp.round(jnp.sqrt(pixels * ratio))
    wide = jnp.round(jnp.sqrt(pixels / ratio))
    fits = (tall < height) & (wide < width) & (chosen < probability)
    first = jnp.argmax(fits, axis=1)[:, None]  # 0 where none fits, whose size is then 0
    tall = jnp.take_along_axis(jnp.where(fits, tall, 0), first, axis=1)
    wide = jnp.take_along_axis(jnp.where(fits, wide, 0), first, axis=1)
    top = jnp.floor(top * (height - tall + 1))
    left = jnp.floor(left * (width - wide + 1))
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top) & (rows < top + tall)
    in_columns = (columns >= left) & (columns < left + wide)
    return in_rows[:, :, None] & in_columns[:, None, :]
