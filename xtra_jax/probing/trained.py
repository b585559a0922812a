"""A probe that came trained, with an imported encoder: what it takes an image for."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xtra_jax.interop.probes import Probe
from xtra_jax.model.encoder import Encoder
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.probing.features import FeatureSpec, encoder_features
from xtra_jax.probing.heads import attentive_logits, linear_logits


def trained_logits(
    probe: Probe,
    encoder: Encoder,
    patches,
    *,
    weights: tuple[dict, dict] | None = None,
    grid: Grid | None = None,
    execution: Execution = Execution(),
) -> jax.Array:
    """The logits of a trained head, with its running statistics.

    Args:
        patches: [batch, tokens, patch_dim], normalised, in block-raster order.
        weights: the head's params and stats where these are arguments of a compiled function.
        grid, execution: as for `encoder_features`.

    Returns:
        float32 [batch, classes].
    """
    params, stats = weights or (probe.params, probe.stats)
    linear = probe.kind == "linear"
    features = FeatureSpec(probe.last_layers, pool=linear)
    found = encoder_features(encoder, patches, features, grid=grid, execution=execution)
    weight = jnp.ones(len(found))  # of each image in the statistics, which stay as they are
    if linear:
        logits, _ = linear_logits(params, stats, found, weight, train=False)
    else:
        logits, _ = attentive_logits(
            params, stats, found, weight, num_heads=probe.num_heads, train=False
        )
    return logits
