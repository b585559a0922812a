"""Masks, orders and reshapes over many shapes, in NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import goldens
from xtra_jax.errors import UserError
from xtra_jax.interop.published import pixels_from_published, pixels_to_published
from xtra_jax.model.grid import Grid, divisors
from xtra_jax.model.masks import (
    block_causal_mask,
    block_raster_order,
    raster_block_causal_mask,
    raster_order,
)
from xtra_jax.model.orders import pseudo_random_orders
from xtra_jax.model.patches import from_blocks, patchify, to_blocks, unpatchify

grids = st.builds(
    lambda side, k, patch: Grid(side * k * patch, patch, k),
    side=st.integers(1, 5),
    k=st.integers(1, 4),
    patch=st.integers(1, 4),
)


def golden_masks():
    return [k for k in goldens.load("A_masks") if k.startswith("mask_")]


@pytest.mark.parametrize("name", golden_masks())
def test_masks_equal_the_published_ones(name):
    _, tokens, k = name.split("_")
    grid = Grid(round(int(tokens) ** 0.5), 1, int(k))
    blocked = goldens.load("A_masks")[name]
    np.testing.assert_array_equal(raster_block_causal_mask(grid), ~blocked)


@pytest.mark.parametrize("name", [k for k in goldens.load("A_masks") if k.startswith("order_")])
def test_block_raster_orders_equal_the_published_ones(name):
    _, tokens, k = name.split("_")
    grid = Grid(round(int(tokens) ** 0.5), 1, int(k))
    np.testing.assert_array_equal(block_raster_order(grid), goldens.load("A_masks")[name])


def test_a_block_that_does_not_divide_the_grid_is_refused():
    """The published mask for it gives two blocks the same number."""
    blocked = goldens.load("A_masks")["nondivisible_mask_196_4"]
    assert not np.array_equal(np.unique(blocked.sum(1)), np.arange(0, 196, 16))
    with pytest.raises(UserError, match=r"block_size=4 .* 14 x 14 .* 1, 2, 7, 14"):
        Grid(224, 16, 4)


def test_a_patch_that_does_not_divide_the_image_is_refused_with_the_nearest_sizes():
    with pytest.raises(UserError, match="224 and 240"):
        Grid(230, 16, 1)


@given(grids)
def test_a_token_sees_its_own_and_earlier_blocks_and_nothing_else(grid):
    mask = raster_block_causal_mask(grid)
    g, k, side = grid.tokens_per_side, grid.block_size, grid.blocks_per_side
    row, column = np.divmod(np.arange(g * g), g)
    block = (row // k) * side + column // k
    np.testing.assert_array_equal(mask, block[None, :] <= block[:, None])


@given(grids)
def test_in_block_raster_order_the_mask_is_block_lower_triangular(grid):
    mask = block_causal_mask(grid)
    blocks = grid.num_blocks, grid.tokens_per_block
    pairs = mask.reshape(*blocks, *blocks)
    assert (pairs.all((1, 3)) == np.tri(grid.num_blocks, dtype=bool)).all()
    assert (pairs.any((1, 3)) == np.tri(grid.num_blocks, dtype=bool)).all()


def test_one_token_per_block_is_the_causal_mask_and_one_block_masks_nothing():
    np.testing.assert_array_equal(raster_block_causal_mask(Grid(6, 1, 1)), np.tri(36, dtype=bool))
    assert block_causal_mask(Grid(6, 1, 6)).all()


@given(grids)
def test_orders_are_inverse_permutations(grid):
    both = block_raster_order(grid)[raster_order(grid)]
    np.testing.assert_array_equal(both, np.arange(grid.num_tokens))


@settings(deadline=None)
@given(grids, st.integers(1, 3))
def test_patches_blocks_and_pixels_are_exact_inverses(grid, batch):
    rng = np.random.default_rng(grid.num_tokens)
    size = grid.image_size
    images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    patches = patchify(images, grid)
    np.testing.assert_array_equal(unpatchify(patches, grid), images)
    blocks = to_blocks(patches, grid)
    assert blocks.shape == (batch, grid.num_blocks, grid.block_dim)
    np.testing.assert_array_equal(from_blocks(blocks, grid), patches)
    published = pixels_to_published(blocks, grid)
    np.testing.assert_array_equal(pixels_from_published(published, grid), blocks)


@given(grids)
def test_a_block_holds_exactly_its_own_square_of_pixels(grid):
    size = grid.image_size
    position = np.arange(size * size).reshape(1, size, size, 1).repeat(3, -1)
    blocks = to_blocks(patchify(position, grid), grid)[0]
    side = grid.block_size * grid.patch_size
    for number, block in enumerate(blocks):
        row, column = np.divmod(number, grid.blocks_per_side)
        square = position[0, row * side : (row + 1) * side, column * side : (column + 1) * side]
        np.testing.assert_array_equal(np.sort(block), np.sort(square.ravel()))


@given(st.integers(1, 40), st.integers(0, 3))
def test_no_two_pseudo_random_orders_share_a_prefix(num_blocks, seed):
    orders = pseudo_random_orders(num_blocks, seed)
    assert orders.shape == (num_blocks, num_blocks)
    assert (np.sort(orders, axis=1) == np.arange(num_blocks)).all()
    for length in range(1, num_blocks):
        assert len({tuple(order[:length]) for order in orders}) == num_blocks


@given(st.integers(1, 400))
def test_divisors_are_all_of_them(number):
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
