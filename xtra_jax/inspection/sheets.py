"""Draws samples with their labels and block borders, and crops beside what they were cut from."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from xtra_jax.inspection.canvas import (
    BORDER,
    BROKEN,
    ERASED,
    FAINT,
    INK,
    LINE,
    MARGIN,
    SMALL,
    TEXT,
    fitted,
    font,
    sheet,
    wrap,
)
from xtra_jax.inspection.views import Crop, Sample, Views
from xtra_jax.model.grid import Grid

Pixels = tuple[int, int, int, int]  # (left, top, right, bottom), all inside

_SMALLEST_TILE = 160  # pixels; smaller images are enlarged, by a whole number
_WIDEST = 1640
_WIDEST_ORIGINAL = 1.5  # tiles
_GAP = 14
_CAPTION = TEXT + SMALL + 14
# Of crops: apart from each other also for those who do not see red or green.
CROP_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66))


def enlargement(grid: Grid) -> int:
    """By what an image is drawn larger than it is."""
    return max(1, math.ceil(_SMALLEST_TILE / grid.image_size))


def columns_for(count: int, tile: int) -> int:
    """How many tiles stand side by side: as many as fit, evenly filled."""
    most = max(1, (_WIDEST - 2 * MARGIN + _GAP) // (tile + _GAP))
    return math.ceil(count / math.ceil(count / most))


def tile_corner(number: int, columns: int, tile: int, top: int) -> tuple[int, int]:
    """(x, y) of the first pixel of a tile."""
    row, column = divmod(number, columns)
    return MARGIN + column * (tile + _GAP), top + row * (tile + _CAPTION + _GAP)


def border_positions(grid: Grid) -> list[int]:
    """Where inner block borders are drawn in a tile: on the first pixel of each further block."""
    block = grid.block_size * grid.patch_size * enlargement(grid)
    return [number * block for number in range(1, grid.blocks_per_side)]


def draw_samples(
    samples: list[Sample], grid: Grid, title: str, lines: list[str]
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """One tile per sample, its label and key below it.

    Returns:
        The picture, and where in it each tile begins, (x, y).
    """
    tile = enlargement(grid) * grid.image_size
    columns = columns_for(len(samples), tile)
    rows = math.ceil(len(samples) / columns)
    width = max(2 * MARGIN + columns * (tile + _GAP) - _GAP, 560)
    page, pen, top = sheet(width, rows * (tile + _CAPTION + _GAP) + MARGIN - _GAP, title, lines)
    corners = [tile_corner(i, columns, tile, top) for i in range(len(samples))]
    for sample, (x, y) in zip(samples, corners, strict=True):
        if sample.pixels is None:
            _draw_problem(pen, x, y, tile, sample.problem)
        else:
            page.paste(_enlarged(sample.pixels, tile), (x, y))
            _draw_borders(pen, x, y, tile, grid)
            if sample.erased:
                _draw_box(pen, x, y, _pixels(sample.erased, enlargement(grid)), ERASED, 1)
        _draw_caption(pen, x, y + tile, tile, sample.label, sample.key)
    return page, corners


def draw_views(
    views: list[Views], size: int, title: str, lines: list[str]
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """A row per image: the original with the crops' rectangles in it, then the crops.

    Args:
        views: of images with equally many crops each.
        size: side of a crop, pixels.

    Returns:
        The picture, and where in it each original begins, (x, y).
    """
    tile = max(1, math.ceil(_SMALLEST_TILE / size)) * size
    scales = [min(tile / view.shape[0], _WIDEST_ORIGINAL * tile / view.shape[1]) for view in views]
    room = max(round(scale * view.shape[1]) for scale, view in zip(scales, views, strict=True))
    room = max(room, tile)
    step = tile + _CAPTION + _GAP
    width = 2 * MARGIN + room + len(views[0].crops) * (tile + _GAP)
    page, pen, top = sheet(width, len(views) * step + MARGIN - _GAP, title, lines)
    corners = []
    for row, (view, scale) in enumerate(zip(views, scales, strict=True)):
        x, y = MARGIN, top + row * step
        height, across = view.shape
        original = Image.fromarray(view.original)
        drawn = max(1, round(scale * across)), max(1, round(scale * height))
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
        page.paste(original.resize(drawn, how), (x, y))
        corners.append((x, y))
        _draw_caption(pen, x, y + tile, room, view.label, f"{view.key}, {across} x {height}")
        boxes = side_by_side([_pixels(crop.box, scale) for crop in view.crops])
        for number, (crop, color) in enumerate(zip(view.crops, CROP_COLORS, strict=False)):
            _draw_box(pen, x, y, boxes[number], color, 2)
            left = x + room + _GAP + number * (tile + _GAP)
            page.paste(_enlarged(crop.pixels, tile), (left, y))
            pen.rectangle([left - 3, y - 3, left + tile + 2, y + tile + 2], outline=color, width=3)
            _draw_caption(pen, left, y + tile, tile, *_about(crop, view.shape))
    return page, corners


def side_by_side(boxes: list[Pixels]) -> list[Pixels]:
    """The boxes, with edges that would hide an earlier box's moved inwards, by 2 pixels each."""
    moved = []
    for number, box in enumerate(boxes):
        inwards = (1, 1, -1, -1)
        same = [sum(abs(other[e] - box[e]) < 2 for other in boxes[:number]) for e in range(4)]
        edges = [edge + 2 * n * way for edge, n, way in zip(box, same, inwards, strict=True)]
        moved.append(tuple(edges) if edges[0] < edges[2] and edges[1] < edges[3] else box)
    return moved


def _about(crop: Crop, shape: tuple[int, int]) -> tuple[str, str]:
    top, left, height, width = crop.box
    share = height * width / (shape[0] * shape[1])
    mirrored = ", mirrored" if crop.mirrored else ""
    return f"{share:.0%} of the area{mirrored}", f"{width} x {height} at ({left}, {top})"


def _enlarged(pixels, tile: int) -> Image.Image:
    return Image.fromarray(pixels).resize((tile, tile), Image.Resampling.NEAREST)


def _draw_borders(pen: ImageDraw.ImageDraw, x: int, y: int, tile: int, grid: Grid) -> None:
    """Lines between blocks, and ticks outside of the tile between tokens."""
    for at in border_positions(grid):
        pen.line([x + at, y, x + at, y + tile - 1], fill=BORDER)
        pen.line([x, y + at, x + tile - 1, y + at], fill=BORDER)
    patch = grid.patch_size * enlargement(grid)
    for number in range(grid.tokens_per_side + 1):
        at = min(number * patch, tile - 1)
        length = 5 if number % grid.block_size == 0 else 2
        color = BORDER if number % grid.block_size == 0 else FAINT
        pen.line([x + at, y + tile, x + at, y + tile + length - 1], fill=color)
        pen.line([x - length, y + at, x - 1, y + at], fill=color)


def _pixels(box, scale: float) -> Pixels:
    """The outermost pixels of (top, left, height, width) of an image drawn at that scale."""
    top, left, height, width = box
    x, y = round(scale * left), round(scale * top)
    far_x, far_y = round(scale * (left + width)) - 1, round(scale * (top + height)) - 1
    return x, y, max(far_x, x), max(far_y, y)


def _draw_box(pen, x: int, y: int, box: Pixels, color, width: int) -> None:
    """A frame just inside of a box of an image drawn at (x, y)."""
    near, far = (x + box[0], y + box[1]), (x + box[2], y + box[3])
    pen.rectangle([near, far], outline=color, width=width)


def _draw_problem(pen: ImageDraw.ImageDraw, x: int, y: int, tile: int, problem: str) -> None:
    pen.rectangle([x, y, x + tile - 1, y + tile - 1], fill=(250, 240, 240), outline=LINE)
    pen.text((x + 10, y + 10), "unusable", fill=BROKEN, font=font(TEXT))
    fits = max(1, (tile - 44) // (SMALL + 4))
    for i, line in enumerate(wrap(problem, SMALL, tile - 20)[:fits]):
        text = fitted(line, SMALL, tile - 20)
        pen.text((x + 10, y + 34 + i * (SMALL + 4)), text, fill=INK, font=font(SMALL))


def _draw_caption(pen, x: int, y: int, width: int, label: str, detail: str) -> None:
    pen.text((x, y + 6), fitted(label, TEXT, width), fill=INK, font=font(TEXT))
    small = fitted(detail, SMALL, width, keep_end=True)
    pen.text((x, y + 6 + TEXT + 4), small, fill=FAINT, font=font(SMALL))
