"""The golden tensors and the small models they belong to (see golden/GOLDEN.md)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from xtra_jax.interop.published import parameter_shapes, published_names, tensor_from_published
from xtra_jax.model.grid import Grid
from xtra_jax.model.patches import patchify
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec

FOLDER = Path(__file__).parent / "golden"


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def subset(tensors: dict, prefix: str) -> dict:
    """The tensors under a prefix, named without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def tiny_spec(block_size: int = 2, num_tokens: int = 1, **changes) -> XTRASpec:
    """The golden model: 64 px, patch 8, width 48, depth 3."""
    return XTRASpec(
        EncoderSpec(Grid(64, 8, block_size), width=48, depth=3, num_heads=3),
        PredictorSpec(hidden=64, width=40, depth=2, num_heads=2),
        HeadSpec(hidden=96, num_tokens=num_tokens),
        **changes,
    )


def from_published(tensors: dict[str, np.ndarray], spec: XTRASpec) -> dict:
    """Published tensors to our parameters: nested dicts, of the arrays' own dtype."""
    names = published_names(spec)
    assert set(tensors) == set(names.values())
    ours = {
        path: tensor_from_published(path, tensors[names[path]], spec, shape)
        for path, shape in parameter_shapes(spec).items()
    }
    return unflatten_dict(ours, sep="/")


def params_of(name: str, spec: XTRASpec) -> dict:
    return from_published(subset(load(name), "param/"), spec)


def images_of(tensors: dict, key: str = "images") -> np.ndarray:
    """[batch, size, size, 3]"""
    return np.ascontiguousarray(tensors[key].transpose(0, 2, 3, 1))


def patches_of(tensors: dict, grid: Grid, key: str = "images") -> np.ndarray:
    return patchify(images_of(tensors, key), grid)
