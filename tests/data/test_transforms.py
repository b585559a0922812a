import math

import numpy as np
import pytest
from PIL import Image

from xtra_jax.data import transforms
from xtra_jax.data.decode import BadImage
from xtra_jax.data.transforms import EvalTransform, PretrainTransform, random_crop, resized_shape
from xtra_jax.errors import UserError


def crops(height, width, scale, ratio, count=4000):
    rng = np.random.default_rng(0)
    return np.array([random_crop(height, width, scale, ratio, rng) for _ in range(count)])


def far_from_uniform(values, low, high):
    """Returns the largest gap between the values' distribution and the uniform one."""
    share = np.sort((values - low) / (high - low))
    return np.abs(share - (np.arange(len(share)) + 0.5) / len(share)).max()


def test_crops_lie_within_the_image():
    for height, width in ((1, 1), (8, 8), (50, 400), (400, 50)):
        top, left, crop_height, crop_width = crops(height, width, (0.08, 1), (0.75, 4 / 3), 500).T
        assert (top >= 0).all() and (left >= 0).all()
        assert (crop_height >= 1).all() and (crop_width >= 1).all()
        assert (top + crop_height <= height).all() and (left + crop_width <= width).all()


def test_a_crops_area_is_uniform_and_its_ratio_log_uniform():
    # Up to this area every ratio fits a square image, so no attempt is ever rejected.
    _, _, height, width = crops(1000, 1000, (0.1, 0.6), (0.75, 1.5)).T
    assert far_from_uniform(height * width / 1e6, 0.1, 0.6) < 0.03
    assert far_from_uniform(np.log(width / height), math.log(0.75), math.log(1.5)) < 0.03


def test_a_crops_place_is_uniform_up_to_both_edges():
    top, left, height, width = crops(12, 20, (0.2, 0.2), (1, 1)).T
    assert set(height) == set(width) == {7}
    for place, places in ((top, 6), (left, 14)):
        counts = np.bincount(place, minlength=places)
        assert len(counts) == places
        assert abs(counts / len(place) * places - 1).max() < 0.3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100, 1000), (0, 425, 100, 150)),  # too wide: full height at the widest ratio
        ((1000, 100), (433, 0, 133, 100)),  # too tall: full width at the narrowest ratio
    ],
)
def test_where_no_attempt_fits_the_crop_is_the_largest_central_one(shape, expected):
    crop = random_crop(*shape, (1.0, 1.0), (0.75, 1.5), np.random.default_rng(0))
    assert crop == expected


def test_where_no_attempt_fits_an_image_of_permitted_shape_is_kept_whole():
    for seed in range(20):
        crop = random_crop(100, 100, (1.0, 1.0), (0.5, 2.0), np.random.default_rng(seed))
        assert crop == (0, 0, 100, 100)


def test_a_crop_does_not_see_what_lies_outside_it(picture):
    image = picture(60, 80)
    transform = PretrainTransform(16, scale=(0.2, 0.5), flip=0)
    top, left, height, width = random_crop(
        60, 80, transform.scale, transform.ratio, np.random.default_rng(5)
    )
    inside = np.zeros((60, 80, 1), bool)
    inside[top : top + height, left : left + width] = True
    result = transform(image, np.random.default_rng(5))
    for outside in (0, 255):
        changed = np.where(inside, image, np.uint8(outside))
        np.testing.assert_array_equal(transform(changed, np.random.default_rng(5)), result)


def test_a_crop_is_resized_bicubically_with_antialiasing(picture):
    image = picture(60, 80)
    transform = PretrainTransform(16, flip=0)
    top, left, height, width = random_crop(
        60, 80, transform.scale, transform.ratio, np.random.default_rng(1)
    )
    cut = Image.fromarray(image).crop((left, top, left + width, top + height))
    expected = cut.resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(transform(image, np.random.default_rng(1)), expected)


def test_a_crop_of_everything_at_its_own_size_changes_nothing(picture):
    image = picture(24, 24)
    transform = PretrainTransform(24, scale=(1, 1), ratio=(1, 1), flip=0)
    np.testing.assert_array_equal(transform(image, np.random.default_rng(0)), image)


def test_a_flip_mirrors_left_and_right_and_nothing_else(picture):
    image = picture(40, 30)
    kept = PretrainTransform(16, flip=0)(image, np.random.default_rng(2))
    flipped = PretrainTransform(16, flip=1)(image, np.random.default_rng(2))
    np.testing.assert_array_equal(flipped, kept[:, ::-1])
    assert (flipped != kept).any()


def test_flips_come_at_the_stated_rate():
    left_to_right = np.repeat(np.arange(8, dtype=np.uint8)[None, :, None], 8, axis=0)
    image = np.repeat(left_to_right, 3, axis=-1)
    transform = PretrainTransform(8, scale=(1, 1), ratio=(1, 1), flip=0.25)
    rng = np.random.default_rng(0)
    flips = [transform(image, rng)[0, 0, 0] == 7 for _ in range(2000)]
    assert abs(np.mean(flips) - 0.25) < 0.03


def test_the_same_generator_gives_the_same_pixels(picture):
    transform = PretrainTransform(16)
    first, again, other = (
        transform(picture(40, 30), np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_randaugment_gets_the_crop_and_the_generator(picture):
    seen = []

    def darken(image, rng):
        seen.append((image.size, rng))
        return image.point(lambda level: level // 2)

    rng = np.random.default_rng(3)
    result = PretrainTransform(16, flip=0, randaugment=darken)(picture(40, 30), rng)
    plain = PretrainTransform(16, flip=0)(picture(40, 30), np.random.default_rng(3))
    assert seen == [((16, 16), rng)]
    np.testing.assert_array_equal(result, plain // 2)


def test_digits_are_enlarged(picture):
    image = picture(8, 8)
    assert PretrainTransform(32)(image, np.random.default_rng(0)).shape == (32, 32, 3)
    assert EvalTransform(32, 32)(image).shape == (32, 32, 3)


@pytest.mark.parametrize("transform", [PretrainTransform(16), EvalTransform(20, 16)])
def test_pil_images_and_arrays_give_the_same_uint8_square(picture, transform):
    image = picture(40, 30)
    from_array = transform(image, np.random.default_rng(0))
    from_pil = transform(Image.fromarray(image), np.random.default_rng(0))
    np.testing.assert_array_equal(from_array, from_pil)
    assert (from_array.dtype, from_array.shape) == (np.uint8, (16, 16, 3))
    assert from_array.flags.writeable and from_array.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "shorter", "expected"),
    [
        ((375, 500), 256, (256, 341)),  # 341.33
        ((500, 375), 256, (341, 256)),
        ((333, 500), 256, (256, 384)),  # 384.38
        ((301, 599), 300, (300, 597)),  # 597.01
        ((8, 8), 32, (32, 32)),
    ],
)
def test_evaluation_rounds_the_longer_side_down(shape, shorter, expected):
    assert resized_shape(*shape, shorter) == expected


@pytest.mark.parametrize(
    ("shape", "size", "top", "left"),
    [
        ((10, 14), 10, 0, 2),
        ((10, 13), 10, 0, 2),  # 1.5 rounds to the even 2
        ((10, 15), 10, 0, 2),  # 2.5 rounds to the even 2
        ((11, 11), 8, 2, 2),  # 1.5 rounds to 2
        ((11, 11), 10, 0, 0),  # 0.5 rounds to 0
    ],
)
def test_the_central_crop_starts_where_torchvisions_does(picture, shape, size, top, left):
    image = picture(*shape)
    result = EvalTransform(min(shape), size)(image)
    np.testing.assert_array_equal(result, image[top : top + size, left : left + size])


def test_evaluation_resizes_the_whole_image_before_it_crops(picture):
    image = picture(60, 90)
    whole = Image.fromarray(image).resize((30, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(whole)[2:18, 7:23]
    np.testing.assert_array_equal(EvalTransform(20, 16)(image), expected)


def test_an_image_too_elongated_to_resize_is_a_bad_image(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 10_000)
    with pytest.raises(BadImage, match="2000 x 2 pixels are too elongated"):
        EvalTransform(20, 16)(np.zeros((2, 2000, 3), np.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.3)},
        {"scale": (0.3, 1.5)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (1.5, 0.75)},
        {"flip": 1.5},
    ],
)
def test_impossible_settings_are_user_errors(options):
    with pytest.raises(UserError):
        PretrainTransform(**{"size": 16, **options})


def test_a_resize_smaller_than_the_crop_is_a_user_error():
    with pytest.raises(UserError, match=r"data\.eval_resize"):
        EvalTransform(200, 224)
