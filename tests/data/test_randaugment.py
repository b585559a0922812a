import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from xtra_jax.data import randaugment
from xtra_jax.data.randaugment import NAMES, OPERATIONS, RandAugment
from xtra_jax.data.transforms import PretrainTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
FILL = (10, 20, 30)
STRENGTHS = [-1.0, -0.9, -0.45, 0.0, 0.3, 0.9, 1.0]


def apply(name, pixels, strength):
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), strength, FILL))


def table(pixels, function):
    """Applies a function of the grey level to every sample."""
    return np.array([function(level) for level in range(256)])[pixels]


def blend(start, end, factor):
    return np.clip(start + factor * (end - start), 0, 255)


def factor(strength):
    return max(0.1, 1 + 0.9 * strength)


def grey(pixels):
    return pixels.astype(float) @ [0.299, 0.587, 0.114]


def test_there_are_fifteen_operations():
    assert len(NAMES) == 15


def test_auto_contrast_stretches_each_channel_to_the_full_range(picture):
    pixels = (picture(20, 30) // 2 + 40).astype(np.uint8)
    low, high = pixels.min(axis=(0, 1)).astype(float), pixels.max(axis=(0, 1))
    expected = (pixels - low) * 255 / (high - low)
    np.testing.assert_allclose(apply("auto_contrast", pixels, 0.9), expected, atol=1)


def test_equalize_makes_levels_equally_frequent():
    # Level v has been reached by (v - 99) of the 100 equally frequent levels of a channel.
    levels = np.arange(100, 200, dtype=np.uint8).repeat(200).reshape(100, 200)
    pixels = np.stack([levels, levels - 50, levels + 50], axis=-1)
    expected = np.round((levels - 100.0) / 99 * 255)
    for channel in range(3):
        result = apply("equalize", pixels, 0.9)[..., channel]
        np.testing.assert_allclose(result, expected, atol=3)


def test_invert_mirrors_the_levels(picture):
    pixels = picture(20, 30)
    np.testing.assert_array_equal(apply("invert", pixels, 0.9), 255 - pixels)


@pytest.mark.parametrize(
    ("strength", "bits"), [(0.0, 4), (0.24, 4), (0.25, 3), (0.5, 2), (0.9, 1), (1.0, 0)]
)
def test_posterize_keeps_four_to_zero_bits(picture, strength, bits):
    pixels = picture(20, 30)
    step = 2 ** (8 - bits)
    for signed in (strength, -strength):
        np.testing.assert_array_equal(
            apply("posterize", pixels, signed), pixels.astype(int) // step * step
        )


@pytest.mark.parametrize("strength", STRENGTHS)
def test_solarize_inverts_from_a_falling_threshold_up(picture, strength):
    pixels = picture(20, 30)
    threshold = 256 - int(abs(strength) * 256)
    expected = table(pixels, lambda level: level if level < threshold else 255 - level)
    np.testing.assert_array_equal(apply("solarize", pixels, strength), expected)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_solarize_add_brightens_the_dark_half(picture, strength):
    pixels = picture(20, 30)
    addend = int(abs(strength) * 110)
    expected = table(pixels, lambda level: min(255, level + addend) if level < 128 else level)
    np.testing.assert_array_equal(apply("solarize_add", pixels, strength), expected)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_brightness_blends_with_black(picture, strength):
    pixels = picture(20, 30)
    expected = blend(0, pixels.astype(float), factor(strength))
    np.testing.assert_allclose(apply("brightness", pixels, strength), expected, atol=1)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_contrast_blends_with_the_mean_grey(picture, strength):
    pixels = picture(20, 30)
    expected = blend(grey(pixels).mean(), pixels.astype(float), factor(strength))
    np.testing.assert_allclose(apply("contrast", pixels, strength), expected, atol=2)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_color_blends_with_the_greyscale_image(picture, strength):
    pixels = picture(20, 30)
    expected = blend(grey(pixels)[..., None], pixels.astype(float), factor(strength))
    np.testing.assert_allclose(apply("color", pixels, strength), expected, atol=2)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_sharpness_blends_with_the_smoothed_image(picture, strength):
    pixels = picture(20, 30).astype(float)
    neighbours = sum(np.roll(pixels, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1))
    smooth = (neighbours + 4 * pixels) / 13
    smooth[[0, -1]], smooth[:, [0, -1]] = pixels[[0, -1]], pixels[:, [0, -1]]
    expected = blend(smooth, pixels, factor(strength))
    result = apply("sharpness", pixels.astype(np.uint8), strength)
    np.testing.assert_allclose(result, expected, atol=2)


def plane(height, width, per_row, per_column):
    """A picture whose level is linear in the pixel's centre; bicubic sampling reproduces it."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.repeat((100 + per_row * y + per_column * x)[..., None], 3, axis=-1)


def inside(coordinates, size):
    """Whether the four samples of a bicubic kernel lie within the image."""
    return (coordinates > 2) & (coordinates < size - 2)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
def test_shears_and_rotations_move_pixels_by_their_formula(name, strength):
    height, width = 40, 50
    y, x = np.mgrid[:height, :width] + 0.5
    if name == "shear_x":
        source_y, source_x = y, x + 0.3 * strength * y
    elif name == "shear_y":
        source_y, source_x = y + 0.3 * strength * x, x
    else:
        angle = np.radians(30 * strength)
        dy, dx = y - height / 2, x - width / 2
        source_x = width / 2 + np.cos(angle) * dx - np.sin(angle) * dy
        source_y = height / 2 + np.sin(angle) * dx + np.cos(angle) * dy
    pixels = np.rint(plane(height, width, 2, 1)).astype(np.uint8)
    result = apply(name, pixels, strength)
    visible = inside(source_y, height) & inside(source_x, width)
    expected = (100 + 2 * source_y + source_x)[..., None]
    np.testing.assert_allclose(result[visible], expected.repeat(3, -1)[visible], atol=2)
    gone = (np.minimum(source_x, source_y) < -1) | (source_y > height + 1) | (source_x > width + 1)
    assert (result[gone] == FILL).all()
    assert gone.any() == (abs(strength) > 0.2)


@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_translations_move_by_up_to_45_percent_and_fill_what_they_uncover(picture, strength):
    pixels = picture(20, 40)
    for name, axis, shift in (("translate_x", 1, 18), ("translate_y", 0, 9)):
        shift = int(shift * strength)
        expected = np.roll(pixels, -shift, axis)
        uncovered = slice(-shift, None) if shift > 0 else slice(None, -shift)
        expected[(slice(None), uncovered) if axis else uncovered] = FILL
        np.testing.assert_array_equal(apply(name, pixels, strength), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if "_x" in name or "_y" in name])
def test_no_strength_means_no_movement(picture, name):
    np.testing.assert_array_equal(apply(name, picture(20, 30), 0.0), picture(20, 30))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_every_operation_keeps_size_and_mode_at_its_strongest(picture, name, strength):
    result = OPERATIONS[name](Image.fromarray(picture(9, 13)), strength, FILL)
    assert (result.size, result.mode) == ((13, 9), "RGB")


@pytest.fixture
def recorded(monkeypatch):
    """Replaces every operation by one that notes its name, strength and fill."""
    calls = []

    def recorder(name):
        def record(image, strength, fill):
            calls.append((name, strength, fill))
            return image

        return record

    for name in NAMES:
        monkeypatch.setitem(randaugment.OPERATIONS, name, recorder(name))
    return calls


def test_two_operations_are_each_applied_half_the_time(recorded):
    rng = np.random.default_rng(0)
    counts = Counter()
    for _ in range(2000):
        before = len(recorded)
        RandAugment(IMAGENET_MEAN)(None, rng)
        counts[len(recorded) - before] += 1
    for applied, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(counts[applied] / 2000 - share) < 0.04


def test_operations_are_drawn_uniformly_and_with_replacement(recorded):
    rng = np.random.default_rng(0)
    augment = RandAugment(IMAGENET_MEAN, probability=1.0)
    for _ in range(3000):
        augment(None, rng)
    names = [name for name, _, _ in recorded]
    counts = Counter(names)
    assert set(counts) == set(NAMES)
    assert all(abs(count / 400 - 1) < 0.2 for count in counts.values())
    repeats = sum(first == second for first, second in zip(names[::2], names[1::2], strict=True))
    assert abs(repeats / 3000 - 1 / 15) < 0.02


def test_magnitudes_are_normal_around_nine_and_clipped_at_ten_with_either_sign(recorded):
    rng = np.random.default_rng(0)
    augment = RandAugment(IMAGENET_MEAN, probability=1.0)
    for _ in range(3000):
        augment(None, rng)
    strengths = np.array([strength for _, strength, _ in recorded])
    magnitudes = 10 * abs(strengths)
    assert abs((strengths > 0).mean() - 0.5) < 0.03
    assert abs(np.median(magnitudes) - 9) < 0.05
    assert abs((magnitudes < 8.5).mean() - 0.1587) < 0.02
    assert abs((magnitudes == 10).mean() - 0.0228) < 0.01
    assert magnitudes.max() == 10


def test_the_fill_is_the_mean_colour(recorded):
    RandAugment(IMAGENET_MEAN, probability=1.0)(None, np.random.default_rng(0))
    assert {fill for _, _, fill in recorded} == {(124, 116, 104)}
    assert RandAugment((1.0, 1.0, 0.0)).fill == (255, 255, 0)


def test_it_plugs_into_the_transform_and_travels_to_workers(picture):
    transform = PretrainTransform(24, randaugment=RandAugment(IMAGENET_MEAN))
    copy = pickle.loads(pickle.dumps(transform))
    plain = PretrainTransform(24)
    changed = 0
    for seed in range(40):
        results = [t(picture(30, 40), np.random.default_rng(seed)) for t in (transform, copy)]
        np.testing.assert_array_equal(*results)
        changed += (results[0] != plain(picture(30, 40), np.random.default_rng(seed))).any()
    assert 20 < changed < 40
