"""Reconstructions for a page: drawn from a checkpoint, each picture a file inside the page."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
from PIL import Image

from xtra_jax.errors import UserError
from xtra_jax.interop.open_checkpoint import open_checkpoint, weights_sha256
from xtra_jax.model.grid import Grid
from xtra_jax.reconstruct import held_out_images, predict_images
from xtra_jax.report.run import Run

COUNT = 8
ERROR_GAIN = 2
_SMALLEST = 144  # side of a picture, pixels: two for each of a phone's in three columns
_GIVEN = (255, 170, 0)  # of the frame around the block that is given
_SHEET = "reconstruction.png"  # what `xtra reconstruct` writes


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a checkpoint predicts of a few held-out images.

    Attributes:
        sha256: of the newest checkpoint's encoder; "" where there is none.
        step: that the pictures are of.
        columns: for each image the original, the prediction and the error, as PNGs.
        sheet: a PNG of `xtra reconstruct` that lay there, where none could be drawn.
        reason: why none could be drawn; "" where they were.
    """

    sha256: str = ""
    step: int | None = None
    columns: tuple[tuple[bytes, bytes, bytes], ...] = ()
    sheet: bytes = b""
    reason: str = ""


def draw_pictures(run: Run) -> Pictures:
    """Draws those of the newest checkpoint; where that fails, says why and looks for older ones."""
    sha256 = ""
    try:
        opened = open_checkpoint(run.path)
        sha256 = weights_sha256({"encoder": opened.params["encoder"]})
        opened.need_predictor("a prediction")
        spec = opened.spec
        images = held_out_images(opened.config, spec, "", COUNT)
        predicted, given = predict_images(opened.params, images, opened.config, spec)
    except UserError as error:
        file = run.path / _SHEET
        return Pictures(
            sha256, sheet=file.read_bytes() if file.exists() else b"", reason=str(error)
        )
    columns = [
        _column(image, prediction, spec.grid, given)
        for image, prediction in zip(images, predicted, strict=True)
    ]
    return Pictures(sha256, run.steps[-1], tuple(columns))


def data_uri(png: bytes) -> str:
    """A picture as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _column(
    image: np.ndarray, prediction: np.ndarray, grid: Grid, given: int
) -> tuple[bytes, bytes, bytes]:
    original = image.astype(np.float32) / 255
    error = np.clip(ERROR_GAIN * np.abs(prediction - original), 0, 1)
    scale = max(1, -(-_SMALLEST // grid.image_size))
    predicted = _enlarged(prediction, scale)
    side = scale * grid.image_size // grid.blocks_per_side
    down, across = (side * index for index in divmod(given, grid.blocks_per_side))
    block = predicted[down : down + side, across : across + side]
    line = max(2, side // 24)
    for edge in (block[:line], block[-line:], block[:, :line], block[:, -line:]):
        edge[:] = _GIVEN
    return _png(_enlarged(original, scale)), _png(predicted), _png(_enlarged(error, scale))


def _enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    """uint8, every pixel as a square of so many."""
    pixels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()
