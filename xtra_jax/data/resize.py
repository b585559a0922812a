"""Bicubic resizing with antialiasing, by the fastest means that is installed.

"exact" is what the installed Pillow gives, to the last bit: computed by Numba's machine code where
Numba is installed (about eight times as fast), by Pillow itself otherwise. Pillow's result is not
quite the same in all its versions: from 13 on, a crop whose height shrinks by more than twice the
pixels that its width does is filtered along its columns first, which rounds otherwise (a mean of
0.15 grey levels, at most 8, on such crops of photographs). pillow-simd, which can be installed in
Pillow's place, differs from Pillow 12 in about one value in three hundred, by one grey level; the
machine code then gives what pillow-simd does.

"fast" is the same machine code where there is Numba, and otherwise kornia_rs, which is within
`FAST_MEAN_ERROR` grey levels of Pillow on average and about three times as fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata

import numpy as np
import PIL
from PIL import Image

from xtra_jax.errors import UserError

# Called as resize(pixels, height, width, flip): uint8 [rows, columns, 3], of any memory layout, to
# a new uint8 [height, width, 3], mirrored left and right where `flip` says so.
Resize = Callable[[np.ndarray, int, int, bool], np.ndarray]

# In grey levels: on crops of photographs of 500 x 375 pixels, 0.016 was measured, and at most 8.
# Most of it comes from the crops whose columns Pillow 13 filters first.
FAST_MEAN_ERROR = 0.05


def resizer(kind: str) -> Resize:
    """Returns the function that resizes.

    Args:
        kind: "exact" or "fast".

    Raises:
        UserError: there is no such kind, or what it needs is not installed.
    """
    if kind == "exact":
        return resize_exact
    if kind != "fast":
        raise UserError(f"Crops are resized exact or fast, not {kind!r}: mend data.resize.")
    if _numba() is not None:
        return _numba()
    if _kornia() is None:
        raise UserError(
            "data.resize=fast needs Numba or kornia_rs, and neither is installed: pip install "
            "'xtra_jax[fast]', or take data.resize=exact."
        )
    return resize_with_kornia


def describe_resizer(kind: str) -> str:
    """What resizes, and how exactly, in a few words."""
    resizer(kind)  # raises where there is none
    if _numba() is not None:
        return f"Numba {metadata.version('numba')}, exactly as {_pillow()}"
    if kind == "exact":
        return _pillow()
    version = metadata.version("kornia_rs")
    return f"kornia_rs {version}, within {FAST_MEAN_ERROR} grey levels of Pillow on average"


def resize_exact(pixels: np.ndarray, height: int, width: int, flip: bool = False) -> np.ndarray:
    """Resizes as Pillow does; see `Resize`."""
    compiled = _numba()
    if compiled is not None:
        return compiled(pixels, height, width, flip)
    return resize_with_pillow(pixels, height, width, flip)


def resize_with_pillow(
    pixels: np.ndarray, height: int, width: int, flip: bool = False
) -> np.ndarray:
    """The definition of "exact"; see `Resize`."""
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def filters_columns_first(rows, columns, height: int, width: int):
    """Whether the installed Pillow filters along the columns of a crop before its rows.

    The crop's `rows` and `columns`, in pixels, can be integers or arrays of them.
    """
    modern = int(PIL.__version__.split(".")[0]) >= 13
    return modern & (rows > height) & (rows - height > 2 * (columns - width))


def resize_with_kornia(
    pixels: np.ndarray, height: int, width: int, flip: bool = False
) -> np.ndarray:
    """Resizes by kornia_rs; see `Resize`."""
    pixels = np.ascontiguousarray(pixels)
    resized = _kornia()(pixels, (height, width), "bicubic", antialias=True)
    return np.ascontiguousarray(resized[:, ::-1]) if flip else np.asarray(resized)


@functools.cache
def _kornia() -> Callable | None:
    try:
        from kornia_rs.imgproc import resize
    except ImportError:
        return None
    return resize


@functools.cache
def _numba() -> Resize | None:
    """Machine code that was seen to give the installed Pillow's results, None without."""
    try:
        from xtra_jax.data import resize_kernels
    # Numba raises RuntimeError where it finds no folder for what it compiles.
    except (ImportError, RuntimeError):
        return None

    def rounding(narrow: bool) -> Resize:
        def resize(pixels: np.ndarray, height: int, width: int, flip: bool = False) -> np.ndarray:
            order = filters_columns_first(*pixels.shape[:2], height, width)
            return resize_kernels.resize(pixels, height, width, flip, order, narrow)

        return resize

    as_pillow_and_as_pillow_simd = (rounding(narrow) for narrow in (False, True))
    return next(filter(_gives_pillows_results, as_pillow_and_as_pillow_simd), None)


def _gives_pillows_results(resize: Resize) -> bool:
    noise = np.random.default_rng(0).integers(0, 2, (64, 64, 3), np.uint8) * np.uint8(255)
    return all(
        np.array_equal(
            resize(noise[:rows, :columns], 24, 24, True),
            resize_with_pillow(noise[:rows, :columns], 24, 24, True),
        )
        for rows, columns in ((64, 20), (20, 64), (64, 50), (64, 64), (9, 9))
    )


def _pillow() -> str:
    for name in ("pillow-simd", "pillow"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "Pillow"
