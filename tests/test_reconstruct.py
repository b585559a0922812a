"""Pictures show what the model predicts, where it predicts it, in the colours they say."""

import numpy as np
import pytest
from PIL import Image

from tests import goldens
from xtra_jax.config import load
from xtra_jax.errors import UserError
from xtra_jax.model.orders import pseudo_random_orders
from xtra_jax.model.patches import normalise_patches, patchify, to_blocks
from xtra_jax.model.xtra import bind, reorder_blocks
from xtra_jax.reconstruct import caption, draw, held_out_images, predict_images

SPEC = goldens.tiny_spec()
GRID = SPEC.grid


def config(**overrides):
    mean_and_std = {"data.mean": (0.5, 0.4, 0.3), "data.std": (0.2, 0.3, 0.4)}
    return load("configs/demo.py", mean_and_std | overrides)


@pytest.fixture(scope="module")
def params():
    return goldens.params_of("B_tiny_block_hot", SPEC)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def square(images, block):
    """The pixels of one block."""
    side = GRID.block_size * GRID.patch_size
    row, column = divmod(block, GRID.blocks_per_side)
    rows, columns = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
    return images[:, rows, columns]


@pytest.mark.parametrize("order", ["raster", "pseudo_random"])
def test_every_block_is_the_prediction_from_the_blocks_before_it(params, images, order):
    settings = config(**{"model.order": order, "loss.norm_pix": False})
    predicted, given = predict_images(params, images, settings, SPEC)
    blocks = np.arange(16) if order == "raster" else pseudo_random_orders(16, settings.seed)[0]
    assert given == blocks[0]
    np.testing.assert_allclose(square(predicted, given), square(images / 255, given), atol=1e-6)

    mean, std = np.array(settings.data.mean), np.array(settings.data.std)
    patches = reorder_blocks(normalise_patches(patchify(images, GRID), mean, std), GRID, blocks)
    seen = None if order == "raster" else blocks
    (prediction,) = bind(SPEC, params)(patches, order=seen)
    for i in (1, 7, 15):
        raw = np.asarray(prediction)[:, i - 1].reshape(2, 2, 2, 8, 8, 3)
        pixels = raw.transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 3) * std + mean
        shown = square(predicted, blocks[i])
        np.testing.assert_allclose(shown, np.clip(pixels, 0, 1), atol=1e-5)


def test_normalised_predictions_take_mean_and_spread_of_the_true_block(params, images):
    settings = config()
    predicted, _ = predict_images(params, images, settings, SPEC)
    mean, std = settings.data.mean, settings.data.std
    patches = normalise_patches(patchify(images, GRID), mean, std)
    (prediction,) = bind(SPEC, params)(patches)
    true = np.asarray(to_blocks(patches, GRID))[:, 9]
    block = np.asarray(prediction)[:, 8] * true.std(-1, ddof=1, keepdims=True)
    block = block + true.mean(-1, keepdims=True)
    pixels = block.reshape(2, 2, 2, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 3)
    expected = np.clip(pixels * np.array(std) + np.array(mean), 0, 1)
    np.testing.assert_allclose(square(predicted, 9), expected, atol=1e-4)


def test_the_caption_says_whose_mean_and_spread_were_used():
    said = " ".join(caption(config(), "run"))
    assert "mean and the spread of the true block (the target's own)" in said
    assert "normalised" not in " ".join(caption(config(**{"loss.norm_pix": False}), "run"))


def test_a_sheet_holds_the_image_the_prediction_and_the_error(images):
    predicted = images.astype(np.float32) / 255
    predicted[:, :32] = 0
    sheet = np.asarray(draw(images, predicted, GRID, 5, ["A caption."]))
    tile, gap = 192, 8
    top = sheet.shape[0] - 3 * (tile + gap)
    rows = [sheet[top + r * (tile + gap) :][:tile, gap : gap + tile] for r in range(3)]
    np.testing.assert_array_equal(rows[0][1::3, 1::3], images[0])
    np.testing.assert_array_equal(rows[1][97::3, 1::3], images[0][32:])
    np.testing.assert_array_equal(rows[2][97::3, 1::3], 0)
    error = np.minimum(2 * images[0][:32].astype(int), 255)
    np.testing.assert_allclose(rows[2][1:96:3, 1::3], error, atol=1)
    assert (rows[1][48, 48:96] == (255, 170, 0)).all()


def as_rows(images):
    """The images in an order of their own."""
    return np.sort(images.reshape(len(images), -1), axis=0)


@pytest.mark.parametrize("form", ["folder", "files", "pixels", "normalised"])
def test_images_of_the_models_size_are_drawn_as_they_are_from_every_form(images, tmp_path, form):
    settings = config(**{"data.eval_resize": 80})
    paths = [str(tmp_path / "images" / f"{i}.png") for i in range(len(images))]
    (tmp_path / "images").mkdir()
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    mean, std = (np.array(settings.data[name], np.float32) for name in ("mean", "std"))
    np.save(tmp_path / "pixels.npy", images)
    np.save(tmp_path / "normalised.npy", ((images / 255 - mean) / std).astype(np.float32))
    given = {"folder": str(tmp_path / "images"), "files": paths}
    found = held_out_images(settings, SPEC, given.get(form, str(tmp_path / f"{form}.npy")), 8)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(as_rows(found), as_rows(images))


def test_one_image_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="the only image cannot be read"):
        held_out_images(config(**{"data.eval_resize": 80}), SPEC, str(tmp_path / "a.png"), 8)
