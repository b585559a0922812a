"""The block causal mask, and the token order in which it is block-lower-triangular.

Blocks of k x k tokens are numbered in raster order. A token attends to every token of its own block
and of all earlier blocks, and to nothing else (XTRA, section 3.2). With k = 1 this is the ordinary
causal mask over tokens; with one block it masks nothing.
"""

from __future__ import annotations

import numpy as np

from xtra_jax.model.grid import Grid


def block_raster_order(grid: Grid) -> np.ndarray:
    """The raster index of every token, block after block.

    Returns:
        int [tokens]: entry i is the raster index of the i-th token in block-raster order (all
        tokens of block 0 in raster order, then those of block 1, ...).
    """
    side, k = grid.blocks_per_side, grid.block_size
    raster = np.arange(grid.num_tokens).reshape(side, k, side, k)
    return raster.transpose(0, 2, 1, 3).reshape(-1)


def raster_order(grid: Grid) -> np.ndarray:
    """The inverse of `block_raster_order`: int [tokens], the block-raster index by raster index."""
    return np.argsort(block_raster_order(grid))


def block_causal_mask(grid: Grid, num_blocks: int | None = None) -> np.ndarray:
    """Which token may look at which, in block-raster order.

    Args:
        num_blocks: keep only the first blocks (pretraining drops the last); all by default.

    Returns:
        bool [tokens, tokens], True where the row's token attends to the column's token.
    """
    blocks = grid.num_blocks if num_blocks is None else num_blocks
    block = np.repeat(np.arange(blocks), grid.tokens_per_block)
    return block[:, None] >= block[None, :]


def raster_block_causal_mask(grid: Grid) -> np.ndarray:
    """`block_causal_mask` for tokens in raster order, as other ViT code keeps them."""
    order = raster_order(grid)
    return block_causal_mask(grid)[np.ix_(order, order)]
