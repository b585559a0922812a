"""Images to patches to blocks, and back, as exact reshapes.

Tokens are in block-raster order from here on, so that the mask is block-lower-triangular and the
tokens of a block are neighbours: a block is a reshape away. A patch is flattened as (row, column,
channel); a block is its k*k patches, one after another.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from xtra_jax.model.grid import Grid


def patchify(images, grid: Grid):
    """Cuts images into patches, in block-raster order.

    Args:
        images: [batch, image_size, image_size, 3], NumPy or JAX, any dtype.

    Returns:
        [batch, tokens, patch_dim] of the same dtype.
    """
    side, k, p = grid.blocks_per_side, grid.block_size, grid.patch_size
    x = images.reshape(-1, side, k, p, side, k, p, 3)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, grid.num_tokens, grid.patch_dim)


def unpatchify(patches, grid: Grid):
    """The inverse of `patchify`: [batch, tokens, patch_dim] to [batch, size, size, 3]."""
    side, k, p = grid.blocks_per_side, grid.block_size, grid.patch_size
    x = patches.reshape(-1, side, side, k, k, p, p, 3)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, grid.image_size, grid.image_size, 3)


def to_blocks(tokens, grid: Grid):
    """Concatenates the token vectors of each block (the paper's block embedding).

    Args:
        tokens: [batch, blocks * k * k, width] in block-raster order; trailing blocks may be absent.

    Returns:
        [batch, blocks, k * k * width].
    """
    batch, _, width = tokens.shape
    return tokens.reshape(batch, -1, grid.tokens_per_block * width)


def from_blocks(blocks, grid: Grid):
    """The inverse of `to_blocks`: [batch, blocks, k * k * width] to [batch, tokens, width]."""
    batch, _, block_width = blocks.shape
    return blocks.reshape(batch, -1, block_width // grid.tokens_per_block)


def normalise_patches(patches, mean, std):
    """uint8 patches [batch, tokens, patch_dim] to float32, by the mean and spread of each channel.

    Args:
        mean, std: 3 values each, of images in [0, 1].
    """
    repeats = patches.shape[-1] // 3
    mean = np.tile(np.asarray(mean, np.float32), repeats)
    std = np.tile(np.asarray(std, np.float32), repeats)
    return (jnp.asarray(patches, jnp.float32) / 255 - mean) / std


def denormalise_patches(patches, mean, std) -> np.ndarray:
    """The inverse of `normalise_patches` as float32 in [0, 1], clipped to that range."""
    repeats = patches.shape[-1] // 3
    return np.clip(np.asarray(patches) * np.tile(std, repeats) + np.tile(mean, repeats), 0, 1)
