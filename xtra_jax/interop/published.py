"""Names and layouts of the published PyTorch checkpoints, and the way between them and ours.

Theirs is channel-first and flattens a block embedding width first; ours is channel-last with a
block's tokens one after another. What differs is a permutation of rows or columns, so the way there
and back is exact.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from flax.traverse_util import flatten_dict

from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import abstract_params


def pixels_from_published(blocks: np.ndarray, grid: Grid) -> np.ndarray:
    """The last axis of block pixels from (channel, row, column) to our order of patches."""
    k, p = grid.block_size, grid.patch_size
    lead = blocks.shape[:-1]
    x = blocks.reshape(*lead, 3, k, p, k, p)
    n = len(lead)
    return x.transpose(*range(n), n + 1, n + 3, n + 2, n + 4, n).reshape(blocks.shape)


def pixels_to_published(blocks: np.ndarray, grid: Grid) -> np.ndarray:
    """The inverse of `pixels_from_published`."""
    k, p = grid.block_size, grid.patch_size
    lead = blocks.shape[:-1]
    x = blocks.reshape(*lead, k, k, p, p, 3)
    n = len(lead)
    return x.transpose(*range(n), n + 4, n, n + 2, n + 1, n + 3).reshape(blocks.shape)


def _layer_names(ours: str, theirs: str) -> dict[str, str]:
    names = {}
    for norm in ("norm1", "norm2"):
        names |= {f"{ours}/{norm}/scale": f"{theirs}.{norm}.weight"}
        names |= {f"{ours}/{norm}/bias": f"{theirs}.{norm}.bias"}
    for part, published in (
        ("attention/qkv", "attn.qkv"),
        ("attention/out", "attn.proj"),
        ("mlp/fc1", "mlp.fc1"),
        ("mlp/fc2", "mlp.fc2"),
    ):
        names |= {f"{ours}/{part}/kernel": f"{theirs}.{published}.weight"}
        names |= {f"{ours}/{part}/bias": f"{theirs}.{published}.bias"}
    return names


def published_names(spec: XTRASpec) -> dict[str, str]:
    """Our path ("encoder/norm/scale") to the published name ("enc.norm.weight") of each tensor."""
    names = {
        "encoder/patch_embed/kernel": "enc.patch_embed.proj.weight",
        "encoder/patch_embed/bias": "enc.patch_embed.proj.bias",
        "encoder/position": "enc.pos_embed",
        "encoder/norm/scale": "enc.norm.weight",
        "encoder/norm/bias": "enc.norm.bias",
        "projection/fc1/kernel": "proj.mlp.0.weight",
        "projection/fc1/bias": "proj.mlp.0.bias",
        "projection/fc2/kernel": "proj.mlp.2.weight",
        "predictor/position": "predictor.pos_embed",
        "predictor/norm/scale": "predictor.norm.weight",
        "predictor/norm/bias": "predictor.norm.bias",
    }
    for i in range(spec.encoder.depth):
        names |= _layer_names(f"encoder/layers/{i:02d}", f"enc.blocks.{i}")
    for i in range(spec.predictor.depth):
        names |= _layer_names(f"predictor/layers/{i:02d}", f"predictor.blocks.{i}")
    for j in range(spec.head.num_tokens):
        for ours, theirs in (("fc1", "0"), ("fc2", "2")):
            names[f"heads/{j}/{ours}/kernel"] = f"aim_proj.{j}.mlp.{theirs}.weight"
            names[f"heads/{j}/{ours}/bias"] = f"aim_proj.{j}.mlp.{theirs}.bias"
    return names


def tensor_from_published(path: str, tensor: np.ndarray, spec: XTRASpec, shape) -> np.ndarray:
    """One tensor of the right shape, from the published layout to our path and `shape`."""
    grid = spec.grid
    if path.endswith("patch_embed/kernel"):
        return tensor.transpose(2, 3, 1, 0).reshape(shape)
    if path.startswith("heads/") and path.endswith("fc1/kernel"):
        k2, width = grid.tokens_per_block, spec.predictor.width
        return tensor.reshape(-1, width, k2).transpose(2, 1, 0).reshape(shape)
    if path.startswith("heads/") and "/fc2/" in path:
        rows = tensor if tensor.ndim == 1 else tensor.T
        return pixels_from_published(rows, grid)
    if path.endswith("kernel"):
        return tensor.T.reshape(shape)
    return tensor.reshape(shape)


def _to_published(path: str, array: np.ndarray, spec: XTRASpec) -> np.ndarray:
    """The inverse of `tensor_from_published`."""
    grid = spec.grid
    if path.endswith("patch_embed/kernel"):
        p = grid.patch_size
        return array.reshape(p, p, 3, -1).transpose(3, 2, 0, 1)
    if path.startswith("heads/") and path.endswith("fc1/kernel"):
        k2, width = grid.tokens_per_block, spec.predictor.width
        return array.reshape(k2, width, -1).transpose(2, 1, 0).reshape(array.shape[1], -1)
    if path.startswith("heads/") and "/fc2/" in path:
        rows = pixels_to_published(array, grid)
        return rows if rows.ndim == 1 else rows.T
    if path.endswith("attention/qkv/kernel"):
        return array.reshape(array.shape[0], -1).T
    if path.endswith("attention/out/kernel"):
        return array.reshape(-1, array.shape[-1]).T
    if path.endswith("position"):
        return array[None]
    if path.endswith("kernel"):
        return array.T
    return array.reshape(-1)


def parameter_shapes(spec: XTRASpec) -> dict[str, tuple[int, ...]]:
    """Our path and the shape of every tensor of a model.

    The layers of a stack are alike, so models of one layer each tell all: a file may claim many.
    """
    shallow = dataclasses.replace(
        spec,
        encoder=dataclasses.replace(spec.encoder, depth=1),
        predictor=dataclasses.replace(spec.predictor, depth=1),
    )
    one = flatten_dict(abstract_params(shallow), sep="/")
    shapes = {}
    for path, leaf in one.items():
        stack = spec.encoder if path.startswith("encoder/") else spec.predictor
        for i in range(stack.depth if "/layers/" in path else 1):
            shapes[path.replace("/layers/00/", f"/layers/{i:02d}/")] = leaf.shape
    return shapes


def published_shapes(spec: XTRASpec) -> dict[str, tuple[int, ...]]:
    """The published name and shape of every tensor of a model."""
    names = published_names(spec)
    return {
        names[path]: _to_published(path, np.empty(shape, np.bool_), spec).shape
        for path, shape in parameter_shapes(spec).items()
    }


def to_published(params: dict, spec: XTRASpec) -> dict[str, np.ndarray]:
    """Our parameters (or anything of their shapes, such as gradients) under published names."""
    names = published_names(spec)
    return {
        names[path]: _to_published(path, np.asarray(array), spec)
        for path, array in flatten_dict(params, sep="/").items()
    }
