"""Learned position tables: stored in raster order, read in block order, resized bicubically."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from xtra_jax.model.grid import Grid
from xtra_jax.model.masks import block_raster_order


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """Interpolation weights from `source` to `target` samples of a line, float64 [target, source].

    Cubic convolution with a = -0.75, half-pixel centres, clamped edges and no antialiasing, as
    PyTorch's `interpolate(mode="bicubic")`; a = -0.5, as elsewhere, would be off by up to 0.09.
    """
    a = -0.75
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    left = np.floor(centre).astype(int)
    weights = np.zeros((target, source))
    for tap in range(-1, 3):
        distance = np.abs(centre - (left + tap))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        columns = np.clip(left + tap, 0, source - 1)
        np.add.at(weights, (np.arange(target), columns), np.where(distance <= 1, near, far))
    return weights


def resize_positions(table, tokens_per_side: int):
    """Resizes a position table to another square grid.

    Args:
        table: [tokens, width], in raster order.
        tokens_per_side: of the new grid.

    Returns:
        [tokens_per_side ** 2, width]; the table itself when the grid is its own.
    """
    source = round(table.shape[0] ** 0.5)
    if source == tokens_per_side:
        return table
    matrix = bicubic_matrix(source, tokens_per_side).astype(np.float32)
    square = table.reshape(source, source, -1)
    resized = jnp.einsum("ip,jq,pqd->ijd", matrix, matrix, square)
    return resized.reshape(tokens_per_side**2, -1)


def block_positions(table, grid: Grid, num_blocks: int, order=None):
    """The rows of a position table for the tokens the model sees, in the order it sees them.

    Args:
        table: [tokens, width] in raster order, of any square grid.
        num_blocks: how many blocks are seen.
        order: int [blocks], the order of the blocks; raster when None.

    Returns:
        [num_blocks * k * k, width].
    """
    table = resize_positions(table, grid.tokens_per_side)[block_raster_order(grid)]
    if order is not None:
        blocks = table.reshape(grid.num_blocks, grid.tokens_per_block, -1)
        table = blocks[order].reshape(grid.num_tokens, -1)
    return table[: num_blocks * grid.tokens_per_block]
