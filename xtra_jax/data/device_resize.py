"""Crops resized on the accelerator, inside the jitted step, as Pillow would have.

Workers then only decode and cut. To an accelerator a resize is two small matrix products per image.
It does as the installed Pillow does: bicubic weights in multiples of 2^-22, one axis, rounding to
uint8, then the other, in Pillow's order (see `xtra_jax.data.resize`).

The sums are those of float32, where Pillow's are of whole numbers, so a value that lies within
1e-4 of half a grey level may round to the other side: `MEAN_ERROR` and `MAX_ERROR`.

A canvas of 512 x 512 pixels takes 768 KiB on its way, five times a square of 224, and about 4.4 MiB
per image in the step, in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xtra_jax.data.resize import filters_columns_first

# In grey levels, against Pillow.
MEAN_ERROR = 0.002
MAX_ERROR = 2

_WEIGHT_STEPS = 2.0**22


def resize_on_device(canvas: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Resizes the crops of a batch to squares.

    Args:
        canvas: uint8 `[batch, side, side, 3]`; each crop lies in its canvas's top left corner.
        box: int32 `[batch, 3]`: the crop's height and width in pixels, 1 to `side`, and whether to
            mirror it left and right.
        size: side of the squares.

    Returns:
        uint8 `[batch, size, size, 3]`.
    """
    side = canvas.shape[1]
    height, width, flip = box[:, 0], box[:, 1], box[:, 2]
    # Where columns come first, the whole resize is of the transposed crop.
    turned = filters_columns_first(height, width, size, size)
    canvas = _turn(canvas, turned)
    across = bicubic_weights(jnp.where(turned, height, width), side, size)
    down = bicubic_weights(jnp.where(turned, width, height), side, size)
    rows = _rounded(jnp.einsum("byxc,box->byoc", canvas, across, **_FLOAT32))
    squares = _rounded(jnp.einsum("byxc,boy->boxc", rows, down, **_FLOAT32))
    squares = _turn(squares, turned)
    squares = jnp.where(flip[:, None, None, None] > 0, squares[:, :, ::-1], squares)
    return squares.astype(jnp.uint8)


def bicubic_weights(size: jax.Array, side: int, new_size: int) -> jax.Array:
    """Pillow's weights for every resize of a line of `size` pixels to one of `new_size`.

    Args:
        size: int32 `[batch]`, 1 to `side`.

    Returns:
        float32 `[batch, new_size, side]`, 0 from `size` on.
    """
    size = size[:, None, None]
    place, tap = jnp.arange(new_size)[:, None], jnp.arange(side)
    # The distance between the centres of a new and an old pixel, in pixels of the coarser line.
    # Numerator and denominator are whole, so only the division rounds.
    distance = (2 * tap + 1) * new_size - (2 * place + 1) * size
    x = jnp.abs(distance) / (2 * jnp.maximum(size, new_size)).astype(jnp.float32)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0)
    weights = jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))
    weights = jnp.where(tap < size, weights, 0.0)
    weights /= weights.sum(-1, keepdims=True)
    return jnp.round(weights * _WEIGHT_STEPS) / _WEIGHT_STEPS


_FLOAT32 = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}


def _turn(images: jax.Array, turned: jax.Array) -> jax.Array:
    """Transposes some of the images."""
    return jnp.where(turned[:, None, None, None], images.swapaxes(1, 2), images)


def _rounded(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)
