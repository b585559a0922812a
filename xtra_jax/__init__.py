"""XTRA on JAX: pretrain, probe and look into autoregressive vision models.

Names are imported on first use, so that `import xtra_jax` costs nothing.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Grid": "xtra_jax.model.grid",
    "XTRA": "xtra_jax.model.xtra",
    "XTRASpec": "xtra_jax.model.variants",
    "EncoderSpec": "xtra_jax.model.variants",
    "PredictorSpec": "xtra_jax.model.variants",
    "HeadSpec": "xtra_jax.model.variants",
    "block_causal_mask": "xtra_jax.model.masks",
    "raster_block_causal_mask": "xtra_jax.model.masks",
    "patchify": "xtra_jax.model.patches",
    "unpatchify": "xtra_jax.model.patches",
    "init_params": "xtra_jax.model.xtra",
    "bind": "xtra_jax.model.xtra",
    "xtra_losses": "xtra_jax.model.xtra",
    "load_encoder": "xtra_jax.probing.features",
    "UserError": "xtra_jax.errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'xtra_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return list(__all__)
