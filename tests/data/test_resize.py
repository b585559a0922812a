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
            pytest.skip("the installed Pillow is pillow-simd, which rounds otherwise")
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
        pytest.skip("the installed Pillow is pillow-simd, which rounds otherwise")
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
