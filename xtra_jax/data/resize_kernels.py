"""Pillow's bicubic resize for processors with wide registers, compiled by Numba on its first use.

Pillow filters along one axis, rounds to uint8, then filters along the other, with weights that are
whole multiples of 2^-22; pillow-simd does the same with as many bits as fit into 16. The same whole
numbers are summed here, so the results are the same. What is faster is the layout: to be filtered
along its rows the image is transposed, sixteen rows at a time, so that along both axes a weight
meets many neighbouring bytes at once, and their sums stay in registers until they are rounded. The
two steps that make it so are written in LLVM's operations on vectors: whether it makes such of
loops depends on its version.

Importing this module needs Numba, and compiles; the machine code is kept on disk for the next time.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WEIGHT_BITS = 22
NARROW_BITS = 15  # beside the sign

# Bytes of a vector, and so the rows that are transposed at once, and the shortest side filtered.
_BLOCK = 16
_CHANNELS = 3
# What is summed at once: the channels of a pixel in a block of rows, or a block of pixels in a row.
_GROUP = _CHANNELS * _BLOCK

_BYTE, _INT = ir.IntType(8), ir.IntType(32)
_BYTES, _INTS = ir.VectorType(_BYTE, _BLOCK), ir.VectorType(_INT, _BLOCK)

_SOURCE = types.Array(types.uint8, 3, "A", readonly=True)
_RESULT = types.uint8[:, :, ::1]
_SIZE = types.int64


def resize(
    pixels: np.ndarray,
    height: int,
    width: int,
    flip: bool = False,
    columns_first: bool = False,
    narrow: bool = False,
) -> np.ndarray:
    """Resizes uint8 `[rows, columns, 3]`, in any memory layout, to `[height, width, 3]`.

    Args:
        flip: mirror left and right.
        columns_first: filter along the columns before the rows, which rounds otherwise.
        narrow: weights of 16 bits, as pillow-simd's, which round otherwise.
    """
    rows, columns, _ = pixels.shape
    pixels = _in_whole_blocks(pixels)
    result = _empty(height, width)
    if columns_first:
        between = _empty(height, columns)
        _filter_columns(pixels, rows, height, narrow, between)
        _filter_rows(between, columns, width, narrow, flip, result)
    else:
        between = _empty(rows, width)
        _filter_rows(pixels, columns, width, narrow, flip, between)
        _filter_columns(between, rows, height, narrow, result)
    if result.shape[:2] == (height, width):
        return result
    return result[:height, :width].copy()


def _empty(height: int, width: int) -> np.ndarray:
    return np.empty((max(height, _BLOCK), max(width, _BLOCK), _CHANNELS), np.uint8)


def _in_whole_blocks(pixels: np.ndarray) -> np.ndarray:
    """The pixels, every row of them in one piece, and no side shorter than a block."""
    rows, columns, _ = pixels.shape
    if min(rows, columns) >= _BLOCK and pixels.strides[1:] == (_CHANNELS, 1):
        return pixels
    copy = _empty(rows, columns)
    copy[:rows, :columns] = pixels
    return copy


@numba.njit("float64(float64)", cache=True)
def _cubic(x):
    """The cubic convolution kernel with a = -1/2 (Keys, 1981)."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@numba.njit(
    "Tuple((int64[::1], int64[::1], int32[:, ::1], int32))(int64, int64, boolean)", cache=True
)
def _weights(size, new_size, narrow):
    """For each place of the result its first tap, how many taps, their weights; and their bits."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    most = int(np.ceil(support)) * 2 + 1
    first = np.empty(new_size, np.int64)
    count = np.empty(new_size, np.int64)
    real = np.zeros((new_size, most))
    for place in range(new_size):
        center = (place + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), size)
        total = 0.0
        for tap in range(high - low):
            real[place, tap] = _cubic((tap + low - center + 0.5) * (1.0 / stretch))
            total += real[place, tap]
        for tap in range(high - low):
            real[place, tap] /= total
        first[place] = low
        count[place] = high - low
    bits = WEIGHT_BITS
    if narrow:  # the largest weight has to fit
        largest = real.max()
        while bits > 0 and int(0.5 + largest * (1 << bits)) >= 1 << NARROW_BITS:
            bits -= 1
    weights = np.empty((new_size, most), np.int32)
    for place in range(new_size):
        for tap in range(most):
            weight = real[place, tap] * (1 << bits)
            weights[place, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
    return first, count, weights, np.int32(bits)


def _vector_at(context, builder, kind, array, place):
    """A pointer to the block of bytes that begins `place` bytes into an array."""
    data = context.make_array(kind)(context, builder, array).data
    return cgutils.pointer_add(builder, data, place, _BYTES.as_pointer())


def _everywhere(builder, number):
    """A vector of one number."""
    unset = ir.Constant(_INTS, ir.Undefined)
    lanes = ir.Constant(_INTS, [0] * _BLOCK)
    return builder.shuffle_vector(builder.insert_element(unset, number, _INT(0)), unset, lanes)


@intrinsic
def _sum_group(typing, source, at, stride, weights, tap, taps, bits, result, to):
    """Sums a group of neighbouring bytes over the taps, and rounds each of the sums to a byte.

    Byte `to + i` of the result comes from the bytes `at + i`, `at + stride + i`, ... of the source
    and as many weights from number `tap` on, which are multiples of 2^-bits.
    """

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        source, at, stride, weights, tap, taps, bits, result, to = arguments
        table = context.make_array(kinds[3])(context, builder, weights).data
        half = builder.shl(_INT(1), builder.sub(bits, _INT(1)))
        sums = [cgutils.alloca_once(builder, _INTS) for _ in range(_CHANNELS)]
        for total in sums:
            builder.store(_everywhere(builder, half), total)
        with cgutils.for_range(builder, taps) as loop:
            weight = builder.load(builder.gep(table, [builder.add(tap, loop.index)]))
            weight = _everywhere(builder, weight)
            line = builder.add(at, builder.mul(loop.index, stride))
            for part, total in enumerate(sums):
                place = builder.add(line, line.type(part * _BLOCK))
                levels = builder.load(
                    _vector_at(context, builder, kinds[0], source, place), align=1
                )
                product = builder.mul(weight, builder.zext(levels, _INTS))
                builder.store(builder.add(builder.load(total), product), total)
        shift = _everywhere(builder, bits)
        black, white = (ir.Constant(_INTS, [level] * _BLOCK) for level in (0, 255))
        for part, total in enumerate(sums):
            levels = builder.ashr(builder.load(total), shift)
            levels = builder.select(builder.icmp_signed("<", levels, black), black, levels)
            levels = builder.select(builder.icmp_signed(">", levels, white), white, levels)
            place = builder.add(to, to.type(part * _BLOCK))
            pointer = _vector_at(context, builder, kinds[7], result, place)
            builder.store(builder.trunc(levels, _BYTES), pointer, align=1)

    signature = types.void(source, _SIZE, _SIZE, weights, _SIZE, _SIZE, types.int32, result, _SIZE)
    return signature, generate


@intrinsic
def _transpose_block(typing, source, at, stride, result, to, new_stride):
    """Transposes a square of bytes: a block of rows, of which each is one vector.

    It takes four rounds, in each of which every row is interleaved with the one half a block below.
    """

    def generate(context, builder, signature, arguments):
        source_kind, _, _, result_kind, _, _ = signature.args
        source, at, stride, result, to, new_stride = arguments

        def line(kind, array, start, step, number):
            place = builder.add(start, builder.mul(step, step.type(number)))
            return _vector_at(context, builder, kind, array, place)

        def interleaved(a, b, start):
            lanes = [start + i // 2 + i % 2 * _BLOCK for i in range(_BLOCK)]
            return builder.shuffle_vector(a, b, ir.Constant(_INTS, lanes))

        lines = [
            builder.load(line(source_kind, source, at, stride, number), align=1)
            for number in range(_BLOCK)
        ]
        half = _BLOCK // 2
        for _ in range(4):
            pairs = zip(lines[:half], lines[half:], strict=True)
            lines = [interleaved(a, b, start) for a, b in pairs for start in (0, half)]
        for number, values in enumerate(lines):
            builder.store(values, line(result_kind, result, to, new_stride, number), align=1)

    return types.void(source, _SIZE, _SIZE, result, _SIZE, _SIZE), generate


@numba.njit(
    types.void(_SOURCE, _SIZE, _SIZE, types.boolean, types.boolean, _RESULT), cache=True, nogil=True
)
def _filter_rows(source, size, new_size, narrow, flip, result):
    """Filters along the rows; with `flip` the places of the result are in reverse."""
    first, count, weights, bits = _weights(size, new_size, narrow)
    most = weights.shape[1]
    rows, length = source.shape[0], _CHANNELS * source.shape[1]
    stride, new_length = source.strides[0], _CHANNELS * result.shape[1]
    # Of a block of rows, transposed to [pixels of a row, channels, rows].
    turned = np.empty(length * _BLOCK, np.uint8)
    filtered = np.empty(new_length * _BLOCK, np.uint8)
    for row in range(0, rows, _BLOCK):
        top = min(row, rows - _BLOCK)  # the last block overlaps with the one before
        for byte in range(0, length, _BLOCK):
            at = min(byte, length - _BLOCK)
            _transpose_block(source, top * stride + at, stride, turned, at * _BLOCK, _BLOCK)
        for place in range(new_size):
            target = new_size - 1 - place if flip else place
            at, to = first[place] * _GROUP, target * _GROUP
            taps = count[place]
            _sum_group(turned, at, _GROUP, weights, place * most, taps, bits, filtered, to)
        for byte in range(0, new_length, _BLOCK):
            to = min(byte, new_length - _BLOCK)
            start = top * new_length + to
            _transpose_block(filtered, to * _BLOCK, _BLOCK, result, start, new_length)


@numba.njit(types.void(_SOURCE, _SIZE, _SIZE, types.boolean, _RESULT), cache=True, nogil=True)
def _filter_columns(source, size, new_size, narrow, result):
    first, count, weights, bits = _weights(size, new_size, narrow)
    most = weights.shape[1]
    stride, length = source.strides[0], _CHANNELS * result.shape[1]
    for place in range(new_size):
        taps = count[place]
        for byte in range(0, length, _GROUP):
            at = min(byte, length - _GROUP)
            start, to = first[place] * stride + at, place * length + at
            _sum_group(source, start, stride, weights, place * most, taps, bits, result, to)
