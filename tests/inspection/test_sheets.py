import numpy as np
import pytest

from xtra_jax.inspection import canvas
from xtra_jax.inspection.sheets import (
    CROP_COLORS,
    border_positions,
    draw_samples,
    draw_views,
    enlargement,
    side_by_side,
)
from xtra_jax.inspection.views import Crop, Sample, Views
from xtra_jax.model.grid import Grid

GREY = 77


def grey(size, **changes):
    return Sample(np.full((size, size, 3), GREY, np.uint8), "a class", "a key", **changes)


def is_color(pixels, color):
    return (pixels == color).all(axis=-1)


def tiles(samples, grid):
    """What was drawn of each sample, without its caption."""
    page, corners = draw_samples(samples, grid, "Title", ["What this is."])
    side = enlargement(grid) * grid.image_size
    pixels = np.asarray(page)
    return [pixels[y : y + side, x : x + side] for x, y in corners]


@pytest.mark.parametrize(
    "grid", [Grid(48, 8, 2), Grid(256, 16, 4), Grid(224, 14, 4), Grid(32, 4, 1)]
)
def test_block_borders_lie_on_the_first_pixels_of_blocks_and_nowhere_else(grid):
    (tile,) = tiles([grey(grid.image_size)], grid)
    scale, block = enlargement(grid), grid.block_size * grid.patch_size
    lines = [scale * block * number for number in range(1, grid.blocks_per_side)]
    assert border_positions(grid) == lines
    expected = np.zeros(tile.shape[:2], bool)
    expected[lines] = expected[:, lines] = True
    np.testing.assert_array_equal(is_color(tile, canvas.BORDER), expected)
    assert (tile[~expected] == GREY).all()


def test_a_model_of_a_single_block_has_no_borders():
    (tile,) = tiles([grey(32)], Grid(32, 8, 4))
    assert (tile == GREY).all()


def test_images_are_enlarged_by_a_whole_number_and_not_smoothed():
    pixels = np.random.default_rng(0).integers(0, 200, (48, 48, 3), np.uint8)
    grid = Grid(48, 8, 2)
    (tile,) = tiles([Sample(pixels, "", "")], grid)
    enlarged = pixels.repeat(4, 0).repeat(4, 1)
    inside = ~is_color(tile, canvas.BORDER)
    np.testing.assert_array_equal(tile[inside], enlarged[inside])


def test_every_sample_has_its_own_place():
    samples = [Sample(np.full((48, 48, 3), level, np.uint8), "", "") for level in range(30)]
    for level, tile in enumerate(tiles(samples, Grid(48, 8, 2))):
        assert (tile[1, 1] == level).all() and (tile[-1, -1] == level).all()


def test_an_erased_rectangle_is_framed():
    (tile,) = tiles([grey(256, erased=(10, 20, 100, 50))], Grid(256, 16, 4))
    rows, columns = np.nonzero(is_color(tile, canvas.ERASED))
    assert (rows.min(), rows.max()) == (10, 109)
    assert (columns.min(), columns.max()) == (20, 69)


def test_an_unusable_image_is_drawn_as_such():
    broken = Sample(None, "a class", "a key", problem="not an image of a known format")
    whole, said = tiles([grey(48), broken], Grid(48, 8, 2))
    assert is_color(said, canvas.BROKEN).any() and not is_color(said, canvas.BORDER).any()
    assert not is_color(whole, canvas.BROKEN).any()


def test_rectangles_of_crops_lie_where_the_crops_were_cut():
    crop = Crop((20, 30, 100, 60), False, np.full((200, 200, 3), GREY, np.uint8))
    view = Views(np.zeros((200, 250, 3), np.uint8), 1.0, (200, 250), "a class", "a key", [crop])
    page, ((x, y),) = draw_views([view], 200, "Title", [])
    original = np.asarray(page)[y : y + 200, x : x + 250]
    rows, columns = np.nonzero(is_color(original, CROP_COLORS[0]))
    assert (rows.min(), rows.max()) == (20, 119)
    assert (columns.min(), columns.max()) == (30, 89)


def test_a_rectangle_does_not_hide_another_with_the_same_edges():
    boxes = side_by_side([(0, 0, 99, 79), (0, 0, 99, 79), (0, 40, 50, 79)])
    assert boxes == [(0, 0, 99, 79), (2, 2, 97, 77), (4, 40, 50, 75)]


def test_text_that_does_not_fit_is_shortened():
    assert canvas.fitted("short", 14, 200) == "short"
    for keep_end in (False, True):
        text = canvas.fitted("a very long name " * 20, 14, 200, keep_end=keep_end)
        assert "..." in text and canvas.font(14).getlength(text) <= 200
    assert canvas.fitted("folder/" * 30 + "name.jpg", 14, 200, keep_end=True).endswith("name.jpg")
