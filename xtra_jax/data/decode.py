"""Encoded bytes to RGB pixels, by one stated rule for every kind of image.

The result is what Pillow's `convert("RGB")` gives and torchvision's loaders therefore see:

* only the first frame of an animation counts; EXIF orientation is not applied;
* greyscale is repeated over the three channels; palettes are looked up;
* transparency is ignored: the colours stored under it are used as they are;
* CMYK is converted as Pillow does it, without colour profiles;
* 16-bit samples keep their high byte. (For greyscale Pillow would clip them to white instead.)

What is refused, as a `BadImage`: bytes that are cut off, empty or of no known format; samples
without a stated range; more than `MAX_PIXELS` pixels, or `MAX_SIDE` on a side, whatever the header
says and before anything is unpacked; text and colour profiles that unpack to more than a megabyte;
a JPEG of more than `MAX_SCANS` scans, each of which costs time for all of its pixels. The largest
image that is not refused was measured to take 0.5 GiB while it is decoded as JPEG, 0.9 as PNG or
TIFF, 1.2 as PNG with transparency, 1.7 as JPEG 2000 and 1.9 as WebP.

JPEGs in the usual colour spaces are read by simplejpeg where it is installed, which is faster and
gives the same bytes.
"""

from __future__ import annotations

import io
import re

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Where Pillow begins to warn of decompression bombs: a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485
# A JPEG's format allows no more. Pillow would spend 24 bytes on each row of one pixel.
MAX_SIDE = 65_535
# Progressive encoders write about ten.
MAX_SCANS = 100
# Colour profiles and metadata take hundreds at the most. It bounds the time of looking for scans.
_MAX_SEGMENTS = 10_000
# No format that is interpreted by an outside program, as EPS is.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_FAST_COLOR_SPACES = ("YCbCr", "Gray", "RGB")
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"
# Not those without a length, and none that decoders pass over within a scan.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")


class BadImage(Exception):
    """An image that cannot be used: the run goes on without it, the message says why."""


def decode(data: bytes) -> np.ndarray:
    """Decodes one image.

    Args:
        data: an encoded image in one of `FORMATS`.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        BadImage: the bytes are not a complete image of a known format, the image is larger than
            the limits above, or its samples have no stated range (32-bit float or integer).
    """
    pixels = _decode_jpeg(data)
    return _decode_with_pillow(data) if pixels is None else pixels


def describe_decoder() -> str:
    """What decodes, in a few words."""
    pillow = f"Pillow {PIL.__version__}"
    if simplejpeg is None:
        return pillow
    return f"simplejpeg {simplejpeg.__version__}, and {pillow} for what is not an ordinary JPEG"


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Returns the pixels of an ordinary, intact JPEG, None where Pillow has to judge."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    # What follows the image, such as a film, may hold those two bytes any number of times.
    if _count_pairs(data, _START_OF_SCAN) > MAX_SCANS and _has_many_scans(data):
        raise BadImage(f"more than {MAX_SCANS} scans, which no encoder writes")
    if simplejpeg is None:
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        if color_space not in _FAST_COLOR_SPACES:
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None


def _count_pairs(data: bytes, pair: bytes) -> int:
    """`data.count(pair)` for two bytes that differ, at a fifth of its cost."""
    value = int.from_bytes(pair, "little")
    from_even, from_odd = (
        np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1)
    )
    return np.count_nonzero(from_even == value) + np.count_nonzero(from_odd == value)


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than `MAX_SCANS` scans, or endlessly many segments, before its end.

    It finds markers as decoders do: segments are passed over by their lengths.
    """
    place = scans = 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, place)
        if marker is None or marker[0] == _END_OF_IMAGE:
            return False
        scans += marker[0] == _START_OF_SCAN
        if scans > MAX_SCANS:
            return True
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return True


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height)
            if image.mode == "F":
                raise BadImage("floating-point samples have no stated range")
            if image.mode.startswith("I"):
                return _high_byte(np.asarray(image))
            # Converting copies, even from RGB to itself.
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes.
        raise BadImage(f"{type(error).__name__}: {error}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImage(f"{width} x {height} pixels are too many")


def _high_byte(samples: np.ndarray) -> np.ndarray:
    """Turns greyscale samples of 16 bits, `[height, width]`, into RGB."""
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise BadImage("32-bit samples have no stated range")
    return np.repeat((samples >> 8).astype(np.uint8)[..., None], 3, axis=-1)
