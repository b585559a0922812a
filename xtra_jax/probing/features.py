"""Features of a frozen encoder: the one function every probe and export takes them from."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from xtra_jax.config import from_dict, model_spec
from xtra_jax.errors import UserError
from xtra_jax.model.encoder import Encoder
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.patches import normalise_patches, patchify
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.training.checkpoint import find_checkpoint, read_config, restore_params
from xtra_jax.training.recipe import objective_of


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Which features (XTRA, section 4.1; AIM, section 4).

    Attributes:
        last_layers: how many of the encoder's last layers.
        average_layers: their mean; otherwise they are concatenated along the width.
        pool: mean over the tokens.
        norm: apply the encoder's final LayerNorm to each layer's output first.
    """

    last_layers: int = 1
    average_layers: bool = True
    pool: bool = False
    norm: bool = False


ATTENTIVE = FeatureSpec(last_layers=6)
LINEAR = FeatureSpec(last_layers=1, pool=True)


def encoder_features(
    encoder: Encoder,
    patches,
    features: FeatureSpec,
    *,
    grid: Grid | None = None,
    execution: Execution = Execution(),
):
    """Features of normalised patches, under the block causal mask, in float32.

    Args:
        patches: [batch, tokens, patch_dim], all blocks present, in block-raster order.

    Returns:
        [batch, tokens, width] in block-raster order, or [batch, width] when pooled; width is
        multiplied by `last_layers` when layers are concatenated.

    Raises:
        UserError: the encoder has fewer layers than asked for.
    """
    if not 1 <= features.last_layers <= encoder.spec.depth:
        raise UserError(
            f"probe.last_layers={features.last_layers}, and the encoder has "
            f"{encoder.spec.depth} layers: ask for 1 to {encoder.spec.depth}"
        )
    outputs = encoder.layer_outputs(
        patches, last=features.last_layers, grid=grid, execution=execution
    )
    if features.norm:
        outputs = [encoder.norm(x) for x in outputs]
    outputs = [x.astype(jnp.float32) for x in outputs]
    x = sum(outputs) / len(outputs) if features.average_layers else jnp.concatenate(outputs, -1)
    return x.mean(axis=1) if features.pool else x


def load_encoder(path: str, step: int | None = None):
    """Loads a frozen encoder from a run's working directory or one of its checkpoints.

    Args:
        step: which checkpoint of the run; the newest by default.

    Returns:
        A function from uint8 images [batch, size, size, 3] and a `FeatureSpec` to features, float32
        [batch, tokens, width] in block-raster order, or [batch, width] when pooled.

    Raises:
        UserError: there is no such checkpoint.
    """
    found = find_checkpoint(path, step)
    config = from_dict(read_config(found))
    spec, objective = model_spec(config), objective_of(config)
    params = restore_params(found)["encoder"]

    @partial(jax.jit, static_argnums=2)
    def extract(params, images, features):
        patches = normalise_patches(patchify(images, spec.grid), objective.mean, objective.std)
        return encoder_features(bind_encoder(spec, params), patches, features)

    def encode(images, features: FeatureSpec = LINEAR):
        size = spec.grid.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != "uint8":
            raise UserError(
                f"the encoder takes uint8 images [batch, {size}, {size}, 3], and got "
                f"{images.dtype} {list(images.shape)}"
            )
        return extract(params, images, features)

    return encode
