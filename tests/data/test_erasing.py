import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtra_jax.data.erasing import random_erasing, random_rectangles

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)

# Compiled once for all tests of this shape.
erase = jax.jit(random_erasing)
IMAGES = jnp.full((64, 16, 16, 3), 7.0)


def rectangles(batch, height, width, probability=1.0, area=AREA, aspect=ASPECT):
    draw = jax.jit(random_rectangles, static_argnums=range(1, 7))
    masks = draw(jax.random.key(0), batch, height, width, probability, area, aspect)
    return np.asarray(masks)


def extents(masks):
    """Returns heights and widths of the true regions."""
    return masks.any(axis=2).sum(axis=1), masks.any(axis=1).sum(axis=1)


def test_what_is_erased_is_one_full_rectangle():
    masks = rectangles(500, 40, 60)
    tall, wide = extents(masks)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), tall * wide)
    for mask in masks[:50]:
        for line in (mask.any(axis=0), mask.any(axis=1)):
            assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() == 2


def test_areas_are_uniform_and_ratios_log_uniform():
    # Large enough for rounding not to matter, and with shapes that nearly always fit.
    area = (0.02, 0.25)
    tall, wide = extents(rectangles(4000, 200, 200, area=area))
    share = np.sort(tall * wide / 200**2)
    uniform = np.linspace(*area, len(share))
    assert np.abs(share - uniform).max() < 0.01
    ratio = np.sort(np.log(tall / wide))
    assert np.abs(ratio - np.linspace(*np.log(ASPECT), len(ratio))).max() < 0.15


def test_places_are_uniform_up_to_both_edges():
    masks = rectangles(6000, 10, 14, area=(9 / 140, 9 / 140), aspect=(1.0, 1.0))
    tall, wide = extents(masks)
    assert set(tall) == set(wide) == {3}
    for axis, places in ((2, 8), (1, 12)):
        counts = np.bincount(masks.any(axis=axis).argmax(axis=1), minlength=places)
        assert len(counts) == places
        assert np.abs(counts * places / 6000 - 1).max() < 0.25


def test_a_rectangle_is_smaller_than_the_image_in_both_directions():
    tall, wide = extents(rectangles(3000, 20, 10, area=(0.2, 0.9)))
    assert tall.max() == 19 and wide.max() == 9


def test_where_no_shape_fits_nothing_is_erased():
    assert not rectangles(50, 20, 20, area=(1.0, 1.0), aspect=(1.0, 1.0)).any()


def test_the_stated_share_of_images_is_erased():
    erased = rectangles(2000, 20, 20, probability=0.25).any(axis=(1, 2))
    assert abs(erased.mean() - 0.25) < 0.03


def test_erasing_replaces_a_rectangle_by_normal_noise_and_nothing_else():
    result = np.asarray(erase(jax.random.key(1), IMAGES, probability=1.0))
    erased = result != 7
    np.testing.assert_array_equal(erased.all(axis=-1), erased.any(axis=-1))
    masks = erased.any(axis=-1)
    tall, wide = extents(masks)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), tall * wide)
    noise = result[erased]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_probability_reaches_from_none_to_all(probability):
    result = erase(jax.random.key(0), IMAGES, probability=probability)
    assert (result != 7).any(axis=(1, 2, 3)).mean() == probability


def test_the_same_key_erases_the_same_and_another_key_differs():
    first, again, other = (
        np.asarray(erase(jax.random.key(seed), IMAGES, probability=1.0)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_dtype_are_kept(dtype):
    images = jax.ShapeDtypeStruct((2, 8, 12, 3), dtype)
    result = jax.eval_shape(random_erasing, jax.random.key(0), images)
    assert (result.shape, result.dtype) == (images.shape, dtype)


def test_images_on_many_devices_are_erased_as_on_one():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    spread = jax.device_put(IMAGES, jax.NamedSharding(mesh, jax.P("data")))
    alone, together = (erase(jax.random.key(0), x, probability=1.0) for x in (IMAGES, spread))
    np.testing.assert_array_equal(alone, together)
