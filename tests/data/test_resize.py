"""Every resizer against Pillow's own bicubic filter, within the error it states."""

import numpy as np
import PIL
import pytest
from PIL import Image

from xtra_jax.data import resize as resizing
from xtra_jax.data.resize import (
    FAST_MEAN_ERROR,
    describe_resizer,
    filters_columns_first,
    resize_exact,
    resize_with_kornia,
    resize_with_pillow,
    resizer,
)
from xtra_jax.data.transforms import EvalTransform, PretrainTransform
from xtra_jax.errors import UserError

# Crops that shrink, grow, do both, keep a side, filter their columns first; single lines; a digit.
SHAPES = [
    ((300, 400), (224, 224)),
    ((375, 281), (224, 224)),
    ((330, 230), (224, 224)),
    ((100, 60), (224, 224)),
    ((40, 300), (64, 64)),
    ((224, 224), (224, 224)),
    ((224, 301), (224, 224)),
    ((301, 224), (224, 224)),
    ((1, 50), (16, 16)),
    ((50, 1), (16, 16)),
    ((1, 1), (5, 3)),
    ((8, 8), (32, 32)),
    ((97, 131), (21, 43)),
    ((375, 500), (300, 400)),
]


def pillow(pixels, height, width, flip=False):
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[:, ::-1] if flip else np.asarray(resized)


def noise(height, width, seed=0):
    """Black and white, where clipping between the two filters shows."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)


@pytest.fixture(params=["installed", "numba"])
def exact(request):
    """The exact resizer that is chosen here, and Numba's where it is installed."""
    if request.param == "numba":
        pytest.importorskip("numba")
        if resizing._numba() is None:
            pytest.skip("the installed Pillow rounds otherwise")
        return resizing._numba()
    return resize_exact


@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize("flip", [False, True])
def test_exact_resizing_is_pillows_to_the_last_bit(exact, picture, shape, size, flip):
    for pixels in (picture(*shape), noise(*shape)):
        np.testing.assert_array_equal(exact(pixels, *size, flip), pillow(pixels, *size, flip))


def test_exact_resizing_is_pillows_at_random_sizes(exact):
    rng = np.random.default_rng(1)
    for seed in range(60):
        height, width, *size = rng.integers(1, 200, 4).tolist()
        pixels = noise(height, width, seed)
        np.testing.assert_array_equal(exact(pixels, *size), pillow(pixels, *size))


def test_a_crop_is_resized_without_being_copied_first(exact, picture):
    image = picture(90, 120)
    crop = image[10:70, 15:100]
    result = exact(crop, 32, 48, False)
    np.testing.assert_array_equal(result, pillow(crop.copy(), 32, 48))
    assert result.flags.writeable and result.flags.c_contiguous
    np.testing.assert_array_equal(image, picture(90, 120))


def test_pixels_of_any_memory_layout_are_resized(exact, picture):
    image = picture(60, 80)
    read_only = image.copy()
    read_only.flags.writeable = False
    layouts = [
        read_only,
        np.asfortranarray(image),
        image[::-1],
        image[:, ::-1],
        image[..., ::-1],
        image[::2, ::3],
        image.transpose(1, 0, 2),
        np.broadcast_to(image[..., :1], image.shape),
    ]
    for pixels in layouts:
        expected = pillow(np.ascontiguousarray(pixels), 30, 33, True)
        np.testing.assert_array_equal(exact(pixels, 30, 33, True), expected)


def filtered(pixels, size, bits):
    """Filters along the rows, with weights of so many bits beside the sign."""
    scale = pixels.shape[1] / size
    stretch = max(scale, 1)
    at = np.abs(np.arange(pixels.shape[1]) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale)
    at /= stretch
    near, far = ((1.5 * at - 2.5) * at * at + 1, -0.5 * (((at - 5) * at + 8) * at - 4))
    weights = np.where(at < 1, near, np.where(at < 2, far, 0))
    weights /= weights.sum(1, keepdims=True)
    shift = 0
    while shift < 22 and np.rint(weights.max() * 2 ** (shift + 1)) < 2**bits:
        shift += 1
    sums = np.einsum("xk,ykc->yxc", np.rint(weights * 2**shift).astype(int), pixels.astype(int))
    return np.clip((sums + 2 ** (shift - 1)) >> shift, 0, 255)


@pytest.mark.parametrize(("shape", "size"), [((50, 90), (16, 32)), ((20, 30), (31, 77))])
@pytest.mark.parametrize("narrow", [False, True])
def test_weights_have_the_bits_that_pillows_or_pillow_simds_have(shape, size, narrow):
    kernels = pytest.importorskip("xtra_jax.data.resize_kernels")
    pixels, bits = noise(*shape), 15 if narrow else 31
    along_rows = filtered(pixels, size[1], bits)
    expected = filtered(along_rows.transpose(1, 0, 2), size[0], bits).transpose(1, 0, 2)
    result = kernels.resize(pixels, *size, narrow=narrow)
    np.testing.assert_array_equal(result, expected)
    assert (result != kernels.resize(pixels, *size, narrow=not narrow)).any()


def test_numba_rounds_as_pillow_simd_where_that_is_what_is_installed(monkeypatch):
    kernels = pytest.importorskip("xtra_jax.data.resize_kernels")

    def pillow_simd(pixels, height, width, flip=False):
        return kernels.resize(pixels, height, width, flip, narrow=True)

    monkeypatch.setattr(resizing, "filters_columns_first", lambda *_: False)
    monkeypatch.setattr(resizing, "resize_with_pillow", pillow_simd)
    resizing._numba.cache_clear()
    try:
        pixels = noise(60, 90)
        np.testing.assert_array_equal(resize_exact(pixels, 32, 40), pillow_simd(pixels, 32, 40))
        assert (resize_exact(pixels, 32, 40) != kernels.resize(pixels, 32, 40)).any()
    finally:
        resizing._numba.cache_clear()


def test_numba_is_not_used_where_pillow_gives_other_results(monkeypatch):
    pytest.importorskip("numba")

    def other(pixels, height, width, flip=False):
        return pillow(pixels, height, width, flip) ^ 1

    monkeypatch.setattr(resizing, "resize_with_pillow", other)
    resizing._numba.cache_clear()
    try:
        assert resizing._numba() is None
    finally:
        resizing._numba.cache_clear()


def test_pillows_order_of_filters_is_known(picture):
    """Else the accelerator, and Numba, would round otherwise."""
    tall, wide = noise(300, 230), noise(230, 300)
    modern = int(PIL.__version__.split(".")[0]) >= 13
    assert filters_columns_first(300, 230, 224, 224) == modern
    assert not filters_columns_first(230, 300, 224, 224)
    assert not filters_columns_first(200, 100, 224, 224)
    for pixels, first in ((tall, modern), (wide, False)):
        height, width, _ = pixels.shape
        step = (224, width) if first else (height, 224)
        twice = resize_with_pillow(resize_with_pillow(pixels, *step), 224, 224)
        np.testing.assert_array_equal(twice, pillow(pixels, 224, 224))


@pytest.fixture
def photographs():
    return pytest.importorskip("sklearn.datasets").load_sample_images().images


def test_kornia_is_within_the_error_stated_for_a_fast_resize(photographs):
    pytest.importorskip("kornia_rs")
    rng = np.random.default_rng(0)
    errors = []
    for number in range(40):
        image = photographs[number % 2]
        height, width = rng.integers(150, 400, 2)
        crop = image[: int(height), : int(width)]
        flip = bool(number % 3 == 0)
        fast = resize_with_kornia(crop, 224, 224, flip)
        assert (fast.shape, fast.dtype) == ((224, 224, 3), np.uint8)
        assert fast.flags.c_contiguous
        errors.append(np.abs(pillow(crop, 224, 224, flip).astype(int) - fast).mean())
    assert 0 < np.mean(errors) <= FAST_MEAN_ERROR


def test_kornia_is_given_the_height_first(picture):
    pytest.importorskip("kornia_rs")
    image = picture(60, 90)
    fast = resize_with_kornia(image, 20, 45)
    assert np.abs(pillow(image, 20, 45).astype(int) - fast).mean() < 1


def test_fast_resizing_draws_the_same_crops(photographs, monkeypatch):
    pytest.importorskip("kornia_rs")
    monkeypatch.setattr(resizing, "_numba", lambda: None)
    exact, fast = (PretrainTransform(64, resize=kind) for kind in ("exact", "fast"))
    for seed in range(10):
        pair = [kind(photographs[0], np.random.default_rng(seed)) for kind in (exact, fast)]
        assert np.abs(pair[0].astype(int) - pair[1]).mean() < 1


def test_where_there_is_numba_a_fast_resize_is_exact():
    pytest.importorskip("numba")
    if resizing._numba() is None:
        pytest.skip("the installed Pillow rounds otherwise")
    assert resizer("fast") is resizing._numba()
    assert "exactly as pillow" in describe_resizer("fast")


def test_without_its_packages_a_fast_resize_names_the_extra(monkeypatch):
    monkeypatch.setattr(resizing, "_kornia", lambda: None)
    monkeypatch.setattr(resizing, "_numba", lambda: None)
    for ask in (resizer, describe_resizer, lambda kind: PretrainTransform(16, resize=kind)):
        with pytest.raises(UserError, match=r"kornia_rs.*xtra_jax\[fast\]"):
            ask("fast")


def test_an_unknown_resize_is_a_user_error():
    with pytest.raises(UserError, match=r"'nearest'.*data\.resize"):
        PretrainTransform(16, resize="nearest")


def test_the_resizer_says_what_it_is():
    assert "pillow" in describe_resizer("exact")


def test_evaluation_is_exact_whatever_is_installed(picture):
    image = picture(120, 90)
    whole = pillow(image, 85, 64)
    result = EvalTransform(64, 64)(image)
    np.testing.assert_array_equal(result, whole[10:74])
    assert result.flags.writeable and result.flags.c_contiguous
