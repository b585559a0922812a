"""Damages bytes as disks, networks and people do, by a seeded generator."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

_INTERESTING = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)

Damage = Callable[[bytearray, np.random.Generator], bytearray]


def flip_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << rng.integers(8)
    return data


def cut_off(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def edit_header(data: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(rng.integers(1, 4)):
        at, width = rng.integers(min(len(data), 96)), rng.integers(1, 5)
        data[at : at + width] = bytes([int(rng.choice(_INTERESTING))]) * len(data[at : at + width])
    return data


def lose_sector(data: bytearray, rng: np.random.Generator) -> bytearray:
    size = int(rng.choice([16, 512, 4096]))
    at = rng.integers(len(data))
    data[at : at + size] = bytes(len(data[at : at + size]))
    return data


def scramble_sector(data: bytearray, rng: np.random.Generator) -> bytearray:
    size = int(rng.choice([16, 512, 4096]))
    at = rng.integers(len(data))
    data[at : at + size] = rng.bytes(len(data[at : at + size]))
    return data


def remove_stretch(data: bytearray, rng: np.random.Generator) -> bytearray:
    begin, end = sorted(rng.integers(len(data) + 1, size=2))
    del data[begin : min(end, begin + 1000)]
    return data


def repeat_stretch(data: bytearray, rng: np.random.Generator) -> bytearray:
    begin, at = rng.integers(len(data), size=2)
    data[at:at] = data[begin : begin + rng.integers(1, 1000)]
    return data


def misplace_stretch(data: bytearray, rng: np.random.Generator) -> bytearray:
    """One stretch is written over another, as by a disk that confuses its sectors."""
    size = int(rng.choice([64, 4096, 65536]))
    begin, at = (rng.integers(len(data), size=2) // size * size).tolist()
    part = data[begin : begin + size]
    data[at : at + len(part)] = part
    return data


def append_garbage(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data + rng.bytes(rng.integers(1, 100_000))


ANY = (
    flip_bits,
    cut_off,
    lose_sector,
    scramble_sector,
    remove_stretch,
    repeat_stretch,
    misplace_stretch,
    append_garbage,
)
OF_IMAGES = (flip_bits, cut_off, edit_header, edit_header, *ANY[2:])


def damaged(data: bytes, rng: np.random.Generator, damages: tuple[Damage, ...]) -> bytes:
    """The bytes after one kind of damage, another one than before."""
    while True:
        changed = bytes(damages[rng.integers(len(damages))](bytearray(data), rng))
        if changed != data:
            return changed


def images_of_all_kinds() -> list[bytes]:
    """An image in every format that is read, in its modes and compressions."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    rgb = coarse.resize((64, 48), Image.Resampling.BICUBIC)
    grey, palette, cmyk = rgb.convert("L"), rgb.convert("P"), rgb.convert("CMYK")
    rgba = rgb.convert("RGBA")
    deep = Image.fromarray(rng.integers(0, 65536, (48, 64), dtype=np.uint16))
    frames = {"save_all": True, "append_images": [rgb.rotate(90).convert("P")]}
    kinds = [
        (rgb, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "quality": 60}),
        (rgb, "JPEG", {"subsampling": 0, "optimize": True}),
        (grey, "JPEG", {}),
        (cmyk, "JPEG", {}),
        (rgb, "PNG", {}),
        (rgba, "PNG", {}),
        (palette, "PNG", {"transparency": 3}),
        (deep, "PNG", {}),
        (grey.convert("1"), "PNG", {}),
        (palette, "GIF", {}),
        (palette, "GIF", frames),
        (rgb, "BMP", {}),
        (palette, "BMP", {}),
        (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "tiff_deflate"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (cmyk, "TIFF", {"compression": "packbits"}),
        (deep, "TIFF", {}),
        (rgb, "WEBP", {}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "JPEG2000", {}),
        (rgba, "JPEG2000", {"irreversible": True}),
        (rgb, "PPM", {}),
        (grey, "PPM", {}),
    ]
    encoded = []
    for image, form, options in kinds:
        file = io.BytesIO()
        image.save(file, form, **options)
        encoded.append(file.getvalue())
    return encoded
