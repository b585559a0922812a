"""What the accelerator resizes is what the host would have, within the error that is stated."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from xtra_jax.data.device_resize import MAX_ERROR, MEAN_ERROR, bicubic_weights, resize_on_device
from xtra_jax.data.pipeline import train_batches
from xtra_jax.data.resize import resize_with_pillow
from xtra_jax.data.transforms import CANVAS, DeviceResizeTransform, PretrainTransform
from xtra_jax.errors import UserError
from xtra_jax.parallel.mesh import make_mesh, put_batch

on_device = jax.jit(resize_on_device, static_argnums=2)


class Pictures:
    """Encoded pictures, some of them broken."""

    num_classes, class_names = 4, ("a", "b", "c", "d")

    def __init__(self, encode, picture, count=24, broken=()):
        rng = np.random.default_rng(0)
        shapes = rng.integers(20, 140, (count, 2)).tolist()
        self.images = [picture(*shape, seed=seed) for seed, shape in enumerate(shapes)]
        self.encoded = [encode(image) for image in self.images]
        for index in broken:
            self.encoded[index] = self.encoded[index][:40]

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, index):
        return {"image": self.encoded[index], "label": index % 4, "key": f"picture {index}"}

    def digest(self):
        return "pictures"


def canvases(crops, side):
    batch = np.zeros((len(crops), side, side, 3), np.uint8)
    for canvas, crop in zip(batch, crops, strict=True):
        canvas[: crop.shape[0], : crop.shape[1]] = crop
    return batch


def errors(crops, flips, size, side):
    box = np.array([(*crop.shape[:2], flip) for crop, flip in zip(crops, flips, strict=True)])
    result = np.asarray(on_device(canvases(crops, side), box.astype(np.int32), size))
    assert (result.dtype, result.shape) == (np.uint8, (len(crops), size, size, 3))
    expected = [
        resize_with_pillow(crop, size, size, bool(flip))
        for crop, flip in zip(crops, flips, strict=True)
    ]
    return np.abs(result.astype(int) - np.array(expected))


def test_photographs_are_pillows_within_the_stated_error():
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    rng = np.random.default_rng(0)
    shapes = rng.integers(180, 420, (16, 2)).tolist()
    crops = [images[i % 2][:height, :width] for i, (height, width) in enumerate(shapes)]
    found = errors(crops, rng.integers(0, 2, 16), 224, 512)
    assert found.mean() <= MEAN_ERROR and found.max() <= MAX_ERROR


def test_black_and_white_noise_of_any_size_is_pillows_within_the_stated_error():
    """Where Pillow clips between its filters, filters the columns first, enlarges or does both."""
    rng = np.random.default_rng(1)
    shapes = [*rng.integers(1, 97, (60, 2)).tolist(), [96, 20], [1, 1], [96, 96], [1, 96], [32, 32]]
    crops = [rng.integers(0, 2, (*shape, 3), np.uint8) * np.uint8(255) for shape in shapes]
    found = errors(crops, rng.integers(0, 2, len(crops)), 32, 96)
    assert found.mean() <= MEAN_ERROR and found.max() <= MAX_ERROR


def test_a_crop_of_the_final_size_is_left_as_it_is(picture):
    assert errors([picture(32, 32), picture(32, 32, seed=1)], [0, 1], 32, 64).max() == 0


def test_what_lies_outside_the_crop_counts_for_nothing(picture):
    batch = canvases([picture(40, 30)], 64)
    box = np.array([[40, 30, 0]], np.int32)
    expected = on_device(batch, box, 32)
    batch[:, 40:] = 255
    batch[:, :, 30:] = 255
    np.testing.assert_array_equal(on_device(batch, box, 32), expected)


def test_weights_sum_to_one_and_lie_within_the_line():
    sizes = np.array([1, 7, 32, 60, 64])
    weights = np.asarray(bicubic_weights(sizes, 64, 32))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    for size, row in zip(sizes, weights, strict=True):
        assert (row[:, size:] == 0).all()


@pytest.mark.parametrize("canvas", [64, 200])
def test_training_sees_what_the_exact_path_shows_it(encode, picture, canvas):
    """Same order, same crops, same flips, also of crops that are larger than the canvas."""
    source = Pictures(encode, picture)
    exact = PretrainTransform(32)
    share = {"batch_size": 8, "seed": 3}
    left = DeviceResizeTransform(exact, canvas)
    both = (train_batches(source, kind, **share) for kind in (exact, left))
    larger = 0
    for theirs, ours in itertools.islice(zip(*both, strict=True), 9):
        for name in ("label", "weight", "index"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        resized = np.asarray(on_device(ours["image"], ours["box"], 32)).astype(int)
        found = np.abs(resized - theirs["image"])
        assert found.mean() <= MEAN_ERROR and found.max() <= MAX_ERROR
        larger += int((ours["box"] == (32, 32, 0)).all(-1).sum())
    assert (larger > 0) == (canvas == 64)


def test_a_bad_image_keeps_its_place_as_zeros_without_weight(encode, picture, capsys):
    source = Pictures(encode, picture, broken=(3, 11))
    exact = PretrainTransform(32)
    share = {"batch_size": 24, "seed": 0}
    theirs = next(train_batches(source, exact, **share))
    ours = next(train_batches(source, DeviceResizeTransform(exact), **share))
    np.testing.assert_array_equal(ours["index"], theirs["index"])
    np.testing.assert_array_equal(ours["weight"], theirs["weight"])
    bad = ours["weight"] == 0
    assert sorted(ours["index"][bad].tolist()) == [3, 11]
    resized = np.asarray(on_device(ours["image"], ours["box"], 32))
    assert (resized[bad] == 0).all() and not np.isnan(resized).any()


def test_every_device_of_a_mesh_resizes_its_own_rows(encode, picture):
    source = Pictures(encode, picture)
    transform = DeviceResizeTransform(PretrainTransform(32), 200)
    batch = next(train_batches(source, transform, batch_size=16, seed=0))
    mesh = make_mesh({"data": 2, "fsdp": 4})
    placed = put_batch({name: batch[name] for name in ("image", "box")}, mesh)
    compiled = on_device.lower(placed["image"], placed["box"], 32).compile()
    result = compiled(placed["image"], placed["box"])
    assert {shard.data.shape for shard in result.addressable_shards} == {(2, 32, 32, 3)}
    assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()
    np.testing.assert_array_equal(result, on_device(batch["image"], batch["box"], 32))


def test_the_usual_images_crops_fit_into_the_canvas(picture):
    transform = DeviceResizeTransform(PretrainTransform(224))
    assert transform.size == CANVAS >= 500
    result = transform(picture(375, 500), np.random.default_rng(0))
    assert result["image"].shape == (CANVAS, CANVAS, 3)
    assert tuple(result["box"][:2]) != (224, 224)


def test_a_canvas_is_never_smaller_than_the_image_in_the_end():
    assert DeviceResizeTransform(PretrainTransform(CANVAS + 64)).size == CANVAS + 64
    with pytest.raises(UserError, match="canvas of 100"):
        DeviceResizeTransform(PretrainTransform(224), 100)


def test_randaugment_cannot_go_with_resizing_on_the_device():
    augmented = PretrainTransform(16, randaugment=lambda image, rng: image)
    with pytest.raises(UserError, match=r"RandAugment.*data\.resize=device"):
        DeviceResizeTransform(augmented)
    with pytest.raises(UserError, match=r"data\.resize=device is for pretraining"):
        PretrainTransform(16, resize="device")


def test_pil_images_are_taken_too(picture):
    transform = DeviceResizeTransform(PretrainTransform(16), 64)
    image = picture(40, 30)
    from_array, from_pil = (
        transform(kind, np.random.default_rng(0)) for kind in (image, Image.fromarray(image))
    )
    for name, value in from_array.items():
        np.testing.assert_array_equal(from_pil[name], value)
