"""Images that a user names: all of them come in, once, in order, and as they are."""

import os

import numpy as np
import pytest
from PIL import Image

from xtra_jax.data.decode import BadImage, decode
from xtra_jax.data.images import ArraySource, UnlessOfSize, each_image, key_of, open_images
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3), dtype=np.uint8)
TRANSFORM = UnlessOfSize(EvalTransform(10, 8))


@pytest.fixture
def folder(tmp_path):
    for i, pixels in enumerate(PIXELS):
        (tmp_path / "images" / "ba"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / "ba"[i % 2] / f"{i}.png")
    return tmp_path / "images"


def pixels_of(source):
    return np.stack([decode(source[i]["image"]) for i in range(len(source))])


def test_a_folder_gives_its_images_in_the_order_of_their_paths_with_labels(folder):
    source = open_images([str(folder)])
    assert [key_of(source, i) for i in range(5)] == [
        "a/1.png",
        "a/3.png",
        "b/0.png",
        "b/2.png",
        "b/4.png",
    ]
    np.testing.assert_array_equal(pixels_of(source), PIXELS[[1, 3, 0, 2, 4]])
    assert [source[i]["label"] for i in range(5)] == [0, 0, 1, 1, 1]


def test_files_come_in_the_order_they_are_given_and_may_come_twice(folder):
    paths = [str(folder / "b" / "2.png"), str(folder / "a" / "1.png"), str(folder / "b" / "2.png")]
    source = open_images(paths)
    np.testing.assert_array_equal(pixels_of(source), PIXELS[[2, 1, 2]])
    assert [key_of(source, i) for i in range(3)] == paths


def test_an_array_gives_its_pixels_unchanged(tmp_path):
    np.save(tmp_path / "pixels.npy", PIXELS)
    source = open_images([str(tmp_path / "pixels.npy")])
    np.testing.assert_array_equal(pixels_of(source), PIXELS)
    assert [key_of(source, i) for i in range(5)] == list("01234")


def test_names_are_told_without_reading(folder):
    source = open_images([str(folder)])
    (folder / "a" / "3.png").unlink()
    assert key_of(source, 1) == "a/3.png"


def test_a_file_that_cannot_be_read_is_a_bad_image(folder):
    source = open_images([str(folder / "a" / "1.png")])
    (folder / "a" / "1.png").unlink()
    with pytest.raises(BadImage, match="cannot be read"):
        source[0]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS[0], r"is uint8 \[12, 16, 3\]"),
        (PIXELS.transpose(0, 3, 1, 2), r"is uint8 \[5, 3, 12, 16\]"),
        (PIXELS.astype(np.int64), "is int64"),
        (PIXELS[:0], "holds no images"),
        (np.array([{}]), "cannot be read"),
    ],
)
def test_an_array_of_something_else_is_one_sentence(tmp_path, array, expected):
    np.save(tmp_path / "array.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=expected):
        open_images([str(tmp_path / "array.npy")])


def test_what_cannot_be_opened_is_one_sentence(tmp_path, folder):
    with pytest.raises(UserError, match="/nowhere does not exist"):
        open_images(["/nowhere"])
    with pytest.raises(UserError, match="cannot be given among other images"):
        open_images([str(folder), str(folder / "a" / "1.png")])
    with pytest.raises(UserError, match="--split=train is of a data set or a folder"):
        open_images([str(folder / "a" / "1.png")], "train")
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    for name in ("torn.npy", "zip.npy"):
        with pytest.raises(UserError, match="cannot be read"):
            open_images([str(tmp_path / name)])
    np.savez(tmp_path / "several.npz", PIXELS)
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(UserError, match=r"several.npy is an archive of arrays \(.npz\)"):
        open_images([str(tmp_path / "several.npy")])


def test_an_image_of_the_models_size_is_not_resampled_and_others_are_as_in_validation():
    exact = PIXELS[0, :8, :8]
    np.testing.assert_array_equal(TRANSFORM(exact), exact)
    for other in (PIXELS[0], PIXELS[0, :8], PIXELS[0, :10, :10]):
        np.testing.assert_array_equal(TRANSFORM(other), EvalTransform(10, 8)(other))


def floats(tmp_path, images=11, size=8, **changes):
    array = np.random.default_rng(1).normal(size=(images, size, size, 3)).astype(np.float32)
    np.save(tmp_path / "floats.npy", array)
    return open_images([str(tmp_path / "floats.npy")]), array


@pytest.mark.parametrize("shards", [[(0, 1)], [(0,), (1,)], [(1,), (0,)]])
def test_normalised_floats_come_in_once_each_and_as_they_are(tmp_path, shards):
    source, array = floats(tmp_path)
    seen = {}
    for held in shards:
        share = dict(batch_size=4, shards=held, num_shards=2)
        for batch in each_image(source, TRANSFORM, **share):
            assert len(batch["image"]) == 2 * len(held)
            for image, weight, index in zip(
                batch["image"], batch["weight"], batch["index"], strict=True
            ):
                assert weight == (index >= 0)
                if index >= 0:
                    assert seen.setdefault(int(index), image) is image
    np.testing.assert_array_equal(np.stack([seen[i] for i in range(11)]), array)


def test_floats_with_nan_are_unusable(tmp_path):
    _, array = floats(tmp_path, images=2)
    array[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "floats.npy", array)
    (batch,) = each_image(ArraySource(str(tmp_path / "floats.npy")), TRANSFORM, batch_size=2)
    assert batch["weight"].tolist() == [1, 0] and np.isfinite(batch["image"]).all()


def test_floats_that_are_not_normalised_or_of_another_size_are_one_sentence(tmp_path):
    source, array = floats(tmp_path, size=9)
    with pytest.raises(UserError, match="9 x 9 pixels, and the model takes 8 x 8"):
        next(each_image(source, TRANSFORM, batch_size=2))
    np.save(tmp_path / "unit.npy", PIXELS[:, :8, :8] / np.float32(255))
    source = open_images([os.fspath(tmp_path / "unit.npy")])
    with pytest.raises(UserError, match=r"lie in \[0, 1\]"):
        next(each_image(source, TRANSFORM, batch_size=2))
