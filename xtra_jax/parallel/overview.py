"""A table of what is on the devices: every array's shape, dtype, sharding and bytes per device."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import jax

from xtra_jax.parallel.sharding import path_name


def overview(tree) -> str:
    """Lines of a table, one for each array, or for each that all layers of a stack share.

    Args:
        tree: of arrays or `jax.ShapeDtypeStruct`, all with their shardings.
    """
    rows: dict[tuple, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        layer = re.search(r"(?<=layers/)\d+", name)
        stacked = name if layer is None else name.replace(layer[0], "*", 1)
        key = (stacked, tuple(leaf.shape), str(leaf.dtype), described(leaf), bytes_per_device(leaf))
        rows.setdefault(key, []).append(layer[0] if layer else "")
    table = [("parameter", "shape", "dtype", "sharding", "per device")]
    for (name, shape, dtype, spec, size), layers in rows.items():
        many = len(layers) > 1 or layers[0] != ""
        if many:
            name = name.replace("*", _span(layers), 1)
        times = f"{len(layers)} x " if len(layers) > 1 else ""
        table.append((name, f"{times}{list(shape)}", dtype, spec, as_size(len(layers) * size)))
    total, held = totals(tree)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    table.append((f"{count:,} parameters, {as_size(total)}", "", "", "", as_size(held)))
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + f"  {row[-1]:>10}"
        for row in table
    )


def described(leaf) -> str:
    """The mesh axes that split each axis of an array, "-" for none: "(fsdp, -, tensor, -)"."""
    spec = [*leaf.sharding.spec, *[None] * (len(leaf.shape) - len(leaf.sharding.spec))]
    axes = [axis and leaf.sharding.mesh.shape[axis] > 1 and axis for axis in spec]
    return f"({', '.join(axis or '-' for axis in axes)})" if any(axes) else "replicated"


def bytes_per_device(leaf) -> int:
    return math.prod(leaf.sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize


def totals(tree) -> tuple[int, int]:
    """Bytes of a tree of arrays as a whole, and of the part that one device holds."""
    leaves = jax.tree.leaves(tree)
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return whole, sum(map(bytes_per_device, leaves))


def as_size(size: float) -> str:
    """Bytes in binary units: "1.50 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _span(layers: Iterable[str]) -> str:
    numbers = sorted(layers)
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
