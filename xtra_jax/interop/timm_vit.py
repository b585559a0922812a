"""The encoder as timm's VisionTransformer: names, construction, and the mask that timm lacks.

Tensors are laid out as in the published checkpoints, whose encoder has timm's names. The model is
to be made with `class_token=False`, `global_pool="avg"` and `fc_norm=False`. The last matters: with
average pooling timm otherwise moves the final LayerNorm behind the pooling, as `fc_norm`, and the
norm of a mean is not the mean of norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xtra_jax.interop.published import to_published
from xtra_jax.model.grid import Grid
from xtra_jax.model.masks import raster_block_causal_mask
from xtra_jax.model.variants import XTRASpec

# What the sizes are called in timm. All of them are given beside, so these are names and no more.
_ARCHITECTURES = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
    1408: "vit_giant_patch14_224",
}


def timm_tensors(encoder_params: dict, spec: XTRASpec) -> dict[str, np.ndarray]:
    """The encoder's parameters under timm's names; the position table is in raster order."""
    tensors = to_published({"encoder": encoder_params}, spec)
    return {name.removeprefix("enc."): tensor for name, tensor in tensors.items()}


def timm_mask(grid: Grid) -> dict[str, np.ndarray]:
    """The block causal mask for tokens in raster order, as timm keeps them.

    Returns:
        `attention_mask`, bool [tokens, tokens], True where a row's token attends to a column's,
        and `attention_bias`, the same as 0 and -inf, to be added to the logits.
    """
    mask = raster_block_causal_mask(grid)
    bias = np.where(mask, 0.0, -np.inf).astype(np.float32)
    return {"attention_mask": mask, "attention_bias": bias}


def timm_config(
    spec: XTRASpec, *, mean: Sequence[float], std: Sequence[float], resize: int
) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER")` reads as `config.json`.

    Args:
        mean, std: of the RGB channels, of images in [0, 1].
        resize: pixels of the short side, before the centre crop.
    """
    encoder = spec.encoder
    size = encoder.grid.image_size
    return {
        "architecture": _ARCHITECTURES.get(encoder.width, "vit_base_patch16_224"),
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": "avg",
        "model_args": {
            "img_size": size,
            "patch_size": encoder.grid.patch_size,
            "embed_dim": encoder.width,
            "depth": encoder.depth,
            "num_heads": encoder.num_heads,
            "mlp_ratio": _mlp_ratio(encoder.width, encoder.mlp_hidden),
            "qkv_bias": True,
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
        },
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "pool_size": None,
            "interpolation": "bicubic",
            "crop_mode": "center",
            "crop_pct": _crop_share(size, resize),
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _mlp_ratio(width: int, hidden: int) -> float:
    """The ratio at which timm, which rounds down, finds as many hidden units as there are."""
    ratio = hidden / width
    while int(width * ratio) < hidden:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _crop_share(size: int, resize: int) -> float:
    """The crop's share of the resized side such that timm, which rounds down, finds `resize`."""
    share = size / resize
    while math.floor(size / share) < resize:
        share = math.nextafter(share, 0)
    return share
