"""Encoded bytes to RGB pixels, by one stated rule for every kind of image.

The result is what Pillow's `convert("RGB")` gives and torchvision's loaders therefore see:

* only the first frame of an animation counts; EXIF orientation is not applied;
* greyscale is repeated over the three channels; palettes are looked up;
* transparency is ignored: the colours stored under it are used as they are;
* CMYK is converted as Pillow does it, without colour profiles;
* 16-bit samples keep their high byte. (For greyscale Pillow would clip them to white instead.)

JPEGs in the usual colour spaces are read by simplejpeg where it is installed, which is faster and
gives the same bytes.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Twice Pillow's warning level, where Pillow itself refuses: half a gigabyte of RGB.
MAX_PIXELS = 178_956_970
# No format that is interpreted by an outside program, as EPS is.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_FAST_COLOR_SPACES = ("YCbCr", "Gray", "RGB")


class BadImage(Exception):
    """An image that cannot be used: the run goes on without it, the message says why."""


def decode(data: bytes) -> np.ndarray:
    """Decodes one image.

    Args:
        data: an encoded image in one of `FORMATS`.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        BadImage: the bytes are not a complete image of a known format, the image has more than
            `MAX_PIXELS` pixels, or its samples have no stated range (32-bit float or integer).
    """
    pixels = _decode_jpeg(data)
    return _decode_with_pillow(data) if pixels is None else pixels


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Returns the pixels of an ordinary, intact JPEG, None where Pillow has to judge."""
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        if color_space not in _FAST_COLOR_SPACES or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels are too many")
            if image.mode == "F":
                raise BadImage("floating-point samples have no stated range")
            if image.mode.startswith("I"):
                return _high_byte(np.asarray(image))
            return np.array(image.convert("RGB"))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes.
        raise BadImage(f"{type(error).__name__}: {error}") from error


def _high_byte(samples: np.ndarray) -> np.ndarray:
    """Turns greyscale samples of 16 bits, `[height, width]`, into RGB."""
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise BadImage("32-bit samples have no stated range")
    return np.repeat((samples >> 8).astype(np.uint8)[..., None], 3, axis=-1)
