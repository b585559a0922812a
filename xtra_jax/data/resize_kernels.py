"""Pillow's bicubic resize for processors with wide registers, compiled by Numba on its first use.

Pillow filters along one axis, rounds to uint8, then filters along the other, with weights that are
whole multiples of 2^-22. The same whole numbers are summed here, so the results are the same. What
is faster is the layout: between the two filters the image is transposed, so that in both of them a
weight meets many neighbouring bytes at once.

Importing this module needs Numba, and compiles; the machine code is kept on disk for the next time.
"""

from __future__ import annotations

import numba
import numpy as np

WEIGHT_BITS = 22
_HALF = np.int32(1 << (WEIGHT_BITS - 1))

# Taps come in fours, so up to three of them, of weight 0, lie beyond the last of three channels.
_SPARE = 16
_PIXELS = "uint8[:, ::1]"
_WORDS = "uint64[:, ::1]"


def resize(
    pixels: np.ndarray, height: int, width: int, flip: bool = False, columns_first: bool = False
) -> np.ndarray:
    """Resizes uint8 `[rows, columns, 3]`, in any memory layout, to `[height, width, 3]`.

    Args:
        flip: mirror left and right.
        columns_first: filter along the columns before the rows, which rounds otherwise.
    """
    rows, columns, _ = pixels.shape
    lines = _lines(rows, 3 * columns)
    lines[:rows, : 3 * columns].reshape(rows, columns, 3)[:] = pixels
    if columns_first:
        lines = _filtered(lines, rows, height, 1, False)
        rows = height
    turned = _transposed(lines, rows, 3 * columns)
    turned = _filtered(turned, columns, width, 3, flip)
    lines = _transposed(turned, 3 * width, rows)
    if not columns_first:
        lines = _filtered(lines, rows, height, 1, False)
    return lines[:height, : 3 * width].copy().reshape(height, width, 3)


def _lines(rows: int, columns: int) -> np.ndarray:
    """Memory for `[rows, columns]` bytes in whole blocks of 8 x 8, with spare rows below."""
    return np.empty((_up(rows) + _SPARE, _up(columns)), np.uint8)


def _up(count: int) -> int:
    return -(-count // 8) * 8


def _filtered(lines: np.ndarray, size: int, new_size: int, step: int, flip: bool) -> np.ndarray:
    result = _lines(new_size * step, lines.shape[1])
    _filter(lines, size, new_size, step, flip, result)
    return result


def _transposed(lines: np.ndarray, rows: int, columns: int) -> np.ndarray:
    result = _lines(columns, rows)
    blocks = lines[: _up(rows)].view(np.uint64), result[: _up(columns)].view(np.uint64)
    _transpose(*blocks)
    return result


@numba.njit("float64(float64)", cache=True)
def _cubic(x):
    """The cubic convolution kernel with a = -1/2 (Keys, 1981)."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@numba.njit("Tuple((int64[::1], int64[::1], int32[:, ::1]))(int64, int64)", cache=True)
def _weights(size, new_size):
    """For each place of the result: its first tap, how many taps, and their weights."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    most = int(np.ceil(support)) * 2 + 1
    first = np.empty(new_size, np.int64)
    count = np.empty(new_size, np.int64)
    weights = np.zeros((new_size, (most + 3) // 4 * 4), np.int32)
    real = np.empty(most)
    for place in range(new_size):
        center = (place + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), size)
        total = 0.0
        for tap in range(high - low):
            real[tap] = _cubic((tap + low - center + 0.5) * (1.0 / stretch))
            total += real[tap]
        for tap in range(high - low):
            weight = real[tap] / total * (1 << WEIGHT_BITS)
            weights[place, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first[place] = low
        count[place] = high - low
    return first, count, weights


@numba.njit(f"void({_PIXELS}, int64, int64, int64, boolean, {_PIXELS})", cache=True, nogil=True)
def _filter(source, size, new_size, step, flip, result):
    """Filters along the first axis, where a place is made of `step` lines, one per channel.

    With `flip` the places of the result are in reverse.
    """
    first, count, weights = _weights(size, new_size)
    length = result.shape[1]
    sums = np.empty(length, np.int32)
    for place in range(new_size):
        target = (new_size - 1 - place if flip else place) * step
        for channel in range(step):
            sums[:] = _HALF
            line = first[place] * step + channel
            for tap in range(0, count[place], 4):
                w0, w1 = weights[place, tap], weights[place, tap + 1]
                w2, w3 = weights[place, tap + 2], weights[place, tap + 3]
                a, b = source[line], source[line + step]
                c, d = source[line + 2 * step], source[line + 3 * step]
                line += 4 * step
                for at in range(length):
                    # Numba widens to 64 bits, in which half as many fit into a register.
                    left = np.int32(w0 * np.int32(a[at])) + np.int32(w1 * np.int32(b[at]))
                    right = np.int32(w2 * np.int32(c[at])) + np.int32(w3 * np.int32(d[at]))
                    sums[at] += np.int32(np.int32(left) + np.int32(right))
            for at in range(length):
                result[target + channel, at] = min(max(sums[at] >> WEIGHT_BITS, 0), 255)


@numba.njit(inline="always")
def _swap(a, b, shift, mask):
    """Exchanges the parts of `a` that lie `shift` above the mask with those of `b` under it."""
    differing = ((a >> shift) ^ b) & mask
    return a ^ (differing << shift), b ^ differing


@numba.njit(f"void({_WORDS}, {_WORDS})", cache=True, nogil=True)
def _transpose(source, result):
    """Transposes bytes, in blocks of 8 x 8 that are eight words: by quarters, thrice."""
    by_4, low_4 = np.uint64(32), np.uint64(0x00000000FFFFFFFF)
    by_2, low_2 = np.uint64(16), np.uint64(0x0000FFFF0000FFFF)
    by_1, low_1 = np.uint64(8), np.uint64(0x00FF00FF00FF00FF)
    for i in range(source.shape[0] // 8):
        for j in range(source.shape[1]):
            a, b, c, d = (
                source[8 * i, j],
                source[8 * i + 1, j],
                source[8 * i + 2, j],
                source[8 * i + 3, j],
            )
            e, f, g, h = (
                source[8 * i + 4, j],
                source[8 * i + 5, j],
                source[8 * i + 6, j],
                source[8 * i + 7, j],
            )
            a, e = _swap(a, e, by_4, low_4)
            b, f = _swap(b, f, by_4, low_4)
            c, g = _swap(c, g, by_4, low_4)
            d, h = _swap(d, h, by_4, low_4)
            a, c = _swap(a, c, by_2, low_2)
            b, d = _swap(b, d, by_2, low_2)
            e, g = _swap(e, g, by_2, low_2)
            f, h = _swap(f, h, by_2, low_2)
            a, b = _swap(a, b, by_1, low_1)
            c, d = _swap(c, d, by_1, low_1)
            e, f = _swap(e, f, by_1, low_1)
            g, h = _swap(g, h, by_1, low_1)
            result[8 * j, i], result[8 * j + 1, i] = a, b
            result[8 * j + 2, i], result[8 * j + 3, i] = c, d
            result[8 * j + 4, i], result[8 * j + 5, i] = e, f
            result[8 * j + 6, i], result[8 * j + 7, i] = g, h
