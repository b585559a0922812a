"""Transforms without chance: the same images as with it, where there was none to begin with."""

import numpy as np
import pytest

from xtra_jax.data.randaugment import RandAugment
from xtra_jax.data.settled import settled
from xtra_jax.data.transforms import EvalTransform, PretrainTransform

WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}


@pytest.mark.parametrize(
    "transform",
    [
        EvalTransform(12, 8),
        PretrainTransform(8, **WHOLE),
        PretrainTransform(8, **WHOLE | {"flip": 1.0}),
        PretrainTransform(8, **WHOLE | {"ratio": (2.0, 2.0)}),
    ],
)
@pytest.mark.parametrize("shape", [(16, 16), (20, 33), (40, 12)])
def test_images_are_those_of_any_generator(transform, shape, picture):
    image = picture(*shape)
    found = settled(transform)(image)
    assert not found["drawn"]
    for seed in range(5):
        np.testing.assert_array_equal(found["image"], transform(image, np.random.default_rng(seed)))


@pytest.mark.parametrize("shape", [(16, 17), (101, 100)])
def test_a_crop_that_may_lie_in_two_places_is_told(shape, picture):
    image, transform = picture(*shape), PretrainTransform(8, **WHOLE)
    assert settled(transform)(image)["drawn"]
    images = [transform(image, np.random.default_rng(seed)).tobytes() for seed in range(20)]
    assert len(set(images)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": (0.3, 1.0)},
        {"ratio": (0.9, 1.1)},
        {"flip": 0.5},
        {"randaugment": RandAugment(mean=(0.5, 0.5, 0.5))},
    ],
)
def test_what_plainly_depends_on_chance_is_none(changes):
    assert settled(PretrainTransform(8, **WHOLE | changes)) is None


def test_a_crop_of_a_part_is_told_by_every_image(picture):
    part = settled(PretrainTransform(8, **WHOLE | {"scale": (0.5, 0.5)}))
    assert part(picture(16, 16))["drawn"]
