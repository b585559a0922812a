"""This package's own names in files of weights, told in terms of the published ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from xtra_jax.interop.published import published_names
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec

_DEEPEST = 96


@functools.cache
def published_name_of() -> dict[str, str]:
    """Our path to the published name, for every tensor that any model has."""
    grid = Grid(image_size=16, patch_size=1, block_size=1)
    deepest = XTRASpec(
        EncoderSpec(grid, width=1, depth=_DEEPEST, num_heads=1),
        PredictorSpec(hidden=1, width=1, depth=_DEEPEST, num_heads=1),
        HeadSpec(hidden=1, num_tokens=64),
    )
    return published_names(deepest)


def published_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor of our path and shape has in the published layout."""
    if path.endswith("position"):
        return (1, *shape)
    if not path.endswith("kernel"):
        return (math.prod(shape),)
    if path.endswith("patch_embed/kernel") and len(shape) == 2:
        patch = math.isqrt(shape[0] // 3)
        return (shape[1], 3, patch, patch)
    if path.endswith("attention/out/kernel"):
        return (shape[-1], math.prod(shape[:-1]))
    return (math.prod(shape[1:]), *shape[:1])


def head_counts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The attention heads, which our shapes do tell, by config key.

    Args:
        shapes: by our path.
    """
    counts = {}
    for part, room in (("encoder", "model"), ("predictor", "predictor")):
        shape = shapes.get(f"{part}/layers/00/attention/qkv/kernel", ())
        if len(shape) == 4:
            counts[f"{room}.num_heads"] = shape[2]
    return counts
