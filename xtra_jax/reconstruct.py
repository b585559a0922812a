"""Pictures of what a model predicts: each block of an image, drawn from the blocks before it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from xtra_jax.data.images import UnlessOfSize, each_image, none_readable, open_images
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError
from xtra_jax.interop.open_checkpoint import open_checkpoint
from xtra_jax.model.grid import Grid
from xtra_jax.model.patches import (
    denormalise_patches,
    from_blocks,
    normalise_patches,
    patchify,
    to_blocks,
    unpatchify,
)
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import bind, reorder_blocks
from xtra_jax.training.recipe import evaluation_transform, objective_of, open_eval_source, orders_of
from xtra_jax.training.step import Objective

_TILE = 160  # smallest side of a drawn image, pixels
_GAP = 8
_TEXT = 14
_GIVEN = (255, 170, 0)  # of the frame around the block that is given
_ERROR_GAIN = 2


def reconstruct(
    checkpoint: str,
    out: str,
    *,
    images: str | Sequence[str] = "",
    count: int = 8,
    step: int | None = None,
    config: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """Draws originals, predictions and errors of a checkpoint as one PNG.

    Args:
        checkpoint: a run's working directory, one of its checkpoints, or a file of weights.
        out: the PNG to write.
        images: a folder, an array (.npy), or image files; those the run was validated on when
            empty.
        count: how many images, always the same ones of a set.
        step: which checkpoint of the run; the newest by default.
        config: the pretraining config of a file of weights; `overrides` of it by dotted keys.

    Returns:
        The path written.

    Raises:
        UserError: no such checkpoint, no images, or `out` can't be written.
    """
    if count < 1:
        raise UserError(f"--count={count}, and must be at least 1")
    opened = open_checkpoint(checkpoint, config=config, overrides=overrides, step=step)
    opened.need_predictor("a prediction")
    spec, described = opened.spec, opened.config
    pixels = held_out_images(described, spec, images, count)
    predicted, given = predict_images(opened.params, pixels, described, spec)
    which = checkpoint if opened.path.is_file() else f"{checkpoint}, step {opened.path.name}"
    sheet = draw(pixels, predicted, spec.grid, given, caption(described, which))
    target = epath.Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return os.fspath(target)


def held_out_images(
    config: ConfigDict, spec: XTRASpec, images: str | Sequence[str], count: int
) -> np.ndarray:
    """uint8 [count, size, size, 3], as validation sees them; broken images are left out.

    Those of the model's size are not resampled. An array that is normalised already becomes pixels
    again, by the config's mean and spread.

    Args:
        images: as for `reconstruct`.
    """
    if images:
        source = open_images([images] if isinstance(images, str) else images)
    else:
        source = open_eval_source(config) or open_source(
            config.data.dataset, config.data.train_split, config.data.data_dir
        )
    transform = UnlessOfSize(evaluation_transform(config, spec.grid.image_size))
    # Drawn, because neighbours in a data set are often alike; with a fixed seed, so that pictures
    # of two checkpoints show the same images.
    chosen = _Chosen(source, np.random.default_rng(0).permutation(len(source))[:count])
    (batch,) = each_image(chosen, transform, batch_size=len(chosen))
    readable = batch["image"][batch["weight"] > 0]
    if not len(readable):
        raise UserError(none_readable(len(chosen)))
    if readable.dtype == np.uint8:
        return readable
    pixels = readable * np.asarray(config.data.std) + np.asarray(config.data.mean)
    return np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


class _Chosen:
    """A few records of a source; see `each_image` for arrays that are normalised already."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices
        self.normalised = getattr(source, "normalised", False)
        if self.normalised:
            self.array = source.array[indices]

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self._source[int(self._indices[index])]


def predict_images(
    params: dict, images: np.ndarray, config: ConfigDict, spec: XTRASpec
) -> tuple[np.ndarray, int]:
    """What the model predicts of every block from the blocks before it, as images.

    With `norm_pix` a prediction says how a block's pixels vary about their mean; the mean and the
    spread that make colours of it are those of the true block.

    Args:
        images: uint8 [batch, size, size, 3].

    Returns:
        float32 [batch, size, size, 3] in [0, 1], and the number of the block that is given: there
        the original is shown.
    """
    objective, orders = objective_of(config), orders_of(config, spec)
    order = np.arange(spec.grid.num_blocks) if orders is None else orders[0]
    predict = jax.jit(partial(_predicted_blocks, spec=spec, config=config, order=order))
    predicted, true = map(np.asarray, predict(params, images))
    blocks = true.copy()
    blocks[:, 1:] = predicted[:, :-1]
    if objective.norm_pix:
        mean = true[:, 1:].mean(axis=-1, keepdims=True)
        spread = np.sqrt(true[:, 1:].var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        blocks[:, 1:] = blocks[:, 1:] * spread + mean
    in_raster = np.empty_like(blocks)
    in_raster[:, order] = blocks
    patches = from_blocks(in_raster, spec.grid)
    pixels = denormalise_patches(patches, objective.mean, objective.std)
    return unpatchify(pixels, spec.grid), int(order[0])


def _predicted_blocks(params, images, *, spec: XTRASpec, config: ConfigDict, order):
    """The next-block head's predictions and the true blocks, [batch, blocks, block_dim] each."""
    objective: Objective = objective_of(config)
    patches = normalise_patches(patchify(images, spec.grid), objective.mean, objective.std)
    patches = reorder_blocks(patches, spec.grid, order)
    orders = None if config.model.order == "raster" else jnp.asarray(order)
    predictions = bind(spec, params)(patches, order=orders)
    return predictions[0], to_blocks(patches, spec.grid)


def caption(config: ConfigDict, which: str) -> list[str]:
    """Lines that say what is drawn."""
    lines = [
        f"Top: image.  Middle: prediction of each {config.model.block_size} x "
        f"{config.model.block_size}-token block from the blocks before it.",
        f"Bottom: absolute error, times {_ERROR_GAIN}.  Framed: the first block, which is given.",
    ]
    if config.loss.norm_pix:
        lines.append(
            "Predictions are of normalised pixels: every block is shown with the mean and the "
            "spread of the true block (the target's own)."
        )
    return [*lines, which]


def draw(
    images: np.ndarray, predicted: np.ndarray, grid: Grid, given: int, lines: list[str]
) -> Image.Image:
    """One column per image: original, prediction, error; the caption above.

    Args:
        images: uint8 [batch, size, size, 3].
        predicted: float32 of the same shape, in [0, 1].
        given: number of the block to frame.
        lines: of the caption, wrapped to the width of the picture.
    """
    originals = images.astype(np.float32) / 255
    error = np.clip(_ERROR_GAIN * np.abs(predicted - originals), 0, 1)
    rows = [originals, predicted, error]
    scale = max(1, -(-_TILE // grid.image_size))
    tile = scale * grid.image_size
    font = ImageFont.load_default(size=_TEXT)
    width = _GAP + max(len(images), 4) * (tile + _GAP)
    wrapped = [part for line in lines for part in _wrap(line, font, width - 2 * _GAP)]
    top = _GAP + len(wrapped) * (_TEXT + 6)
    sheet = Image.new("RGB", (width, top + len(rows) * (tile + _GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(wrapped):
        pen.text((_GAP, _GAP + i * (_TEXT + 6)), line, fill="black", font=font)
    block = tile // grid.blocks_per_side
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            picture = Image.fromarray(np.round(255 * pixels).astype(np.uint8))
            x, y = _GAP + c * (tile + _GAP), top + r * (tile + _GAP)
            sheet.paste(picture.resize((tile, tile), Image.Resampling.NEAREST), (x, y))
            if r == 1:
                down, across = divmod(given, grid.blocks_per_side)
                corner = x + across * block, y + down * block
                far = corner[0] + block - 1, corner[1] + block - 1
                pen.rectangle([corner, far], outline=_GIVEN, width=2)
    return sheet


def _wrap(line: str, font, width: int) -> list[str]:
    """A line broken between words so that each part fits the width."""
    parts, current = [], ""
    for word in line.split(" "):
        longer = f"{current} {word}" if current else word
        if current and font.getlength(longer) > width:
            parts.append(current)
            longer = word
        current = longer
    return [*parts, current]
