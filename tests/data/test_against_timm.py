"""Our augmentations against timm's and torchvision's, pixel for pixel and draw for draw.

The golden file was recorded from them by `make_timm_golden.py`; where timm is installed, it is
asked again, also about larger pictures.
"""

from __future__ import annotations

import functools
from collections import Counter

import jax
import numpy as np
import PIL
import pytest
from PIL import Image
from scipy import stats

from tests.data import make_timm_golden as reference
from tests.data.make_timm_golden import (
    CROP_RANGES,
    ERASED_SHAPES,
    EVAL_SIZES,
    FILL,
    GOLDEN,
    MEAN,
    OPERATIONS,
    SIGNED,
    PythonsDraws,
    levels,
)
from xtra_jax.data import randaugment
from xtra_jax.data.erasing import random_rectangles
from xtra_jax.data.randaugment import RandAugment
from xtra_jax.data.transforms import EvalTransform, PretrainTransform, random_crop

as_recorded = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) != 13, reason="Pillow 13 rounds otherwise than others"
)

PICTURES = ("gradient", "narrow", "noise")
PHOTOS = ("37x53", "61x40", "20x91", "33x33")


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def timm():
    """Skips a test where timm or torchvision is missing."""
    pytest.importorskip("torchvision")
    return pytest.importorskip("timm")


def ours(name, pixels, magnitude):
    """Our operation at a signed magnitude."""
    return np.asarray(randaugment.OPERATIONS[name](Image.fromarray(pixels), magnitude / 10, FILL))


def test_the_operations_are_the_fifteen_of_timm():
    assert sorted(OPERATIONS) == sorted(randaugment.NAMES)


def test_the_fill_is_the_one_that_timm_makes_of_the_mean():
    assert RandAugment(MEAN).fill == FILL


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("which", PICTURES)
def test_an_operation_gives_the_recorded_pixels_at_every_magnitude(which, name):
    recorded, pixels = golden()[f"operation/{which}/{name}"], golden()[f"picture/{which}"]
    magnitudes = golden()[f"levels/{name}"]
    assert len(magnitudes) >= 17
    for magnitude, expected in zip(magnitudes, recorded, strict=True):
        np.testing.assert_array_equal(ours(name, pixels, magnitude), expected, str(magnitude))


@pytest.mark.parametrize("name", OPERATIONS)
def test_timm_gives_the_same_pixels_at_every_magnitude(timm, picture, name):
    for height, width in ((32, 32), (57, 41), (8, 120), (96, 97)):
        pixels = picture(height, width, seed=height)
        for magnitude, sign in levels(name):
            expected = reference.timm_operation(name, pixels, magnitude, sign)
            if expected is None:
                assert (name, magnitude) == ("posterize", 10)
                continue
            result = ours(name, pixels, sign * magnitude)
            np.testing.assert_array_equal(result, expected, f"{sign * magnitude}")


def test_only_posterizing_to_no_bits_is_not_in_the_recording():
    """Pillow 13 refuses it and timm fails; Pillow 11 made black of it, and so do we."""
    missing = {
        (name, magnitude)
        for name in OPERATIONS
        for magnitude, sign in levels(name)
        if sign * magnitude not in golden()[f"levels/{name}"]
    }
    assert missing == {("posterize", 10)}
    assert not ours("posterize", golden()["picture/noise"], 10).any()


@pytest.fixture(scope="module")
def our_policy():
    """What our policy applies to 20,000 images: place of each operation, its signed strength."""
    applied = []

    def recorder(name):
        def note(image, strength, fill):
            applied.append((image, list(OPERATIONS).index(name), strength))
            return image

        return note

    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        for name in randaugment.NAMES:
            patch.setitem(randaugment.OPERATIONS, name, recorder(name))
        for image in range(20_000):
            RandAugment(MEAN)(image, rng)
    image, operation, strength = map(np.array, zip(*applied, strict=True))
    return {"image": image, "operation": operation, "strength": strength}


def applied_per_image(policy, images):
    return Counter(np.bincount(policy["image"], minlength=images).tolist())


def agree(theirs, mine, images):
    """Whether two samples come from one distribution, as far as so many images can tell."""
    counts = [applied_per_image(theirs, images), applied_per_image(mine, 20_000)]
    table = [[count[number] for number in (0, 1, 2)] for count in counts]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    table = [np.bincount(policy["operation"], minlength=15) for policy in (theirs, mine)]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    signed = np.arange(15) < len(SIGNED)
    strengths = [p["strength"][signed[p["operation"]]] for p in (theirs, mine)]
    assert stats.ks_2samp(strengths[0], np.float32(strengths[1])).pvalue > 1e-3
    for values in strengths:
        assert abs((values > 0).mean() - 0.5) < 0.03
        assert abs((np.abs(values) > 1 - 1e-5).mean() - 0.0228) < 0.01


def test_the_policy_draws_as_recorded(our_policy):
    recorded = {name: golden()[f"policy/{name}"] for name in ("image", "operation", "strength")}
    agree(recorded, our_policy, 4000)


def test_the_policy_draws_as_timm_does(timm, our_policy):
    agree(reference.timm_policy(20_000, seed=1), our_policy, 20_000)


@pytest.mark.parametrize("ranges", range(len(CROP_RANGES)))
@pytest.mark.parametrize("photo", PHOTOS)
def test_crops_are_the_recorded_ones_for_the_same_draws(photo, ranges):
    height, width = map(int, photo.split("x"))
    draws = PythonsDraws(ranges)
    for expected in golden()[f"crops/{photo}/{ranges}"]:
        crop = random_crop(height, width, *CROP_RANGES[ranges], draws)
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (97, 1021), (640, 64), (28, 28)])
def test_crops_are_those_of_timm_for_the_same_draws(timm, shape):
    for seed, ranges in enumerate(CROP_RANGES):
        draws = PythonsDraws(seed)
        for expected in reference.timm_crops(*shape, *ranges, 2000, seed):
            np.testing.assert_array_equal(random_crop(*shape, *ranges, draws), expected)


def crop_of(pixels, seed, ranges, size):
    """What our transform makes of a picture with the draws of Python's generator."""
    return PretrainTransform(size, *ranges, flip=0.0)(pixels, PythonsDraws(seed))


@as_recorded
@pytest.mark.parametrize("photo", PHOTOS)
def test_a_resized_crop_has_the_recorded_pixels(photo):
    pixels = golden()[f"photo/{photo}"]
    for seed, ranges in enumerate(CROP_RANGES):
        expected = golden()[f"crop/{photo}/{seed}/0"]
        np.testing.assert_array_equal(crop_of(pixels, seed, ranges, 18), expected)


@pytest.mark.parametrize("shape", [(120, 161), (57, 41), (33, 150), (19, 19)])
def test_a_resized_crop_has_the_pixels_of_torchvision(timm, picture, shape):
    pixels = picture(*shape)
    for seed in range(20):
        ranges = CROP_RANGES[seed % 2]
        (crop,) = reference.timm_crops(*shape, *ranges, 1, seed)
        expected = reference.torchvision_crop(pixels, crop, 32)
        np.testing.assert_array_equal(crop_of(pixels, seed, ranges, 32), expected)


@as_recorded
@pytest.mark.parametrize("sizes", EVAL_SIZES)
@pytest.mark.parametrize("photo", PHOTOS)
def test_evaluation_gives_the_recorded_pixels(photo, sizes):
    expected = golden()[f"eval/{photo}/{sizes[0]}/{sizes[1]}"]
    np.testing.assert_array_equal(EvalTransform(*sizes)(golden()[f"photo/{photo}"]), expected)


@pytest.mark.parametrize("sizes", [(256, 224), (48, 48), (37, 20), (33, 32)])
def test_evaluation_gives_the_pixels_of_torchvision(timm, picture, sizes):
    for shape in ((57, 41), (40, 40), (33, 150), (301, 200), (199, 317)):
        pixels = picture(*shape)
        expected = reference.torchvision_eval(pixels, *sizes)
        np.testing.assert_array_equal(EvalTransform(*sizes)(pixels), expected)


@functools.cache
def our_rectangles(height, width, probability=1.0, count=20_000):
    """Rectangles [top, left, height, width] as timm_rectangles gives them."""
    draw = jax.jit(random_rectangles, static_argnums=range(1, 7))
    key = jax.random.key(0)
    masks = np.asarray(draw(key, count, height, width, probability, (0.02, 1 / 3), (0.3, 1 / 0.3)))
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    found = np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], axis=1)
    return np.where(masks.any(axis=(1, 2))[:, None], found, -1)


def agree_on_rectangles(theirs, mine, height, width):
    def fitted(rectangles):
        return rectangles[rectangles[:, 0] >= 0]

    # Some shapes never fit in ten attempts: equally often.
    tried = [[len(fitted(r)), len(r) - len(fitted(r))] for r in (theirs, mine)]
    if any(failed for _, failed in tried):
        assert stats.chi2_contingency(tried).pvalue > 1e-3
    theirs, mine = fitted(theirs).astype(int), fitted(mine)
    for measure in (
        lambda top, left, tall, wide: tall * wide,
        lambda top, left, tall, wide: np.round(np.log(tall / wide), 9),
        lambda top, left, tall, wide: tall,
        lambda top, left, tall, wide: top / (height - tall + 1),
        lambda top, left, tall, wide: left / (width - wide + 1),
    ):
        values = [measure(*rectangles.T) for rectangles in (theirs, mine)]
        assert stats.ks_2samp(*values).pvalue > 1e-3


@pytest.mark.parametrize("shape", ERASED_SHAPES)
def test_erased_rectangles_are_distributed_as_recorded(shape):
    recorded = golden()[f"rectangles/{shape[0]}x{shape[1]}"]
    agree_on_rectangles(recorded, our_rectangles(*shape), *shape)


@pytest.mark.parametrize("shape", ERASED_SHAPES)
def test_erased_rectangles_are_distributed_as_in_timm(timm, shape):
    theirs = reference.timm_rectangles(*shape, 20_000, seed=1)
    agree_on_rectangles(theirs, our_rectangles(*shape), *shape)


def test_as_many_images_are_erased_as_by_timm(timm):
    theirs = reference.timm_rectangles(32, 32, 10_000, probability=0.25)
    shares = [(r[:, 0] >= 0).mean() for r in (theirs, our_rectangles(32, 32, 0.25))]
    assert abs(shares[0] - shares[1]) < 0.02
    assert abs(shares[1] - 0.25) < 0.01
