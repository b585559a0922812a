"""Features of a frozen encoder: the one function every probe and export takes them from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xtra_jax.data.images import refuse_unit_range
from xtra_jax.errors import UserError
from xtra_jax.interop.open_checkpoint import open_checkpoint
from xtra_jax.model.encoder import Encoder
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.masks import raster_order
from xtra_jax.model.patches import normalise_patches, patchify
from xtra_jax.model.xtra import bind_encoder


@dataclasses.dataclass(frozen=True, order=True)  # ordered, as keys of a pytree have to be
class FeatureSpec:
    """Which features (XTRA, section 4.1; AIM, section 4).

    Attributes:
        last_layers: how many of the encoder's last layers.
        average_layers: their mean; otherwise they are concatenated along the width.
        pool: mean over the tokens.
        norm: apply the encoder's final LayerNorm to each layer's output first.
        raster: tokens in raster order, as other ViT code has them, and not in block-raster order.
    """

    last_layers: int = 1
    average_layers: bool = True
    pool: bool = False
    norm: bool = False
    raster: bool = False

    @property
    def name(self) -> str:
        """Such as "last6" or "last1_norm_pooled": one name for each spec, fit for a file."""
        options = {
            "norm": self.norm,
            "concatenated": not self.average_layers,
            "pooled": self.pool,
            "raster": self.raster,
        }
        return "_".join([f"last{self.last_layers}", *(name for name, on in options.items() if on)])

    def check(self, depth: int) -> None:
        """UserError unless an encoder of so many layers has these features."""
        if not 1 <= self.last_layers <= depth:
            raise UserError(
                f"last_layers={self.last_layers}, and the encoder has {depth} layers: ask for 1 to "
                f"{depth}"
            )

    def shape(self, images: int, grid: Grid, width: int) -> tuple[int, ...]:
        """The shape of the features of so many images."""
        width = width if self.average_layers else width * self.last_layers
        return (images, width) if self.pool else (images, grid.num_tokens, width)


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
        [batch, tokens, width] in block-raster order, or in raster order where that is asked for, or
        [batch, width] when pooled; width is multiplied by `last_layers` when layers are
        concatenated.

    Raises:
        UserError: the encoder has fewer layers than asked for.
    """
    specs = [features]
    return features_by_spec(encoder, patches, specs, grid=grid, execution=execution)[features]


def features_by_spec(
    encoder: Encoder,
    patches,
    specs: Iterable[FeatureSpec],
    *,
    grid: Grid | None = None,
    execution: Execution = Execution(),
) -> dict[FeatureSpec, jax.Array]:
    """Several features of the same patches from one pass through the encoder.

    Arguments, features and errors are those of `encoder_features`. What several of them are made
    from, such as the normalised output of a layer, is computed once.
    """
    specs = list(dict.fromkeys(specs))
    for spec in specs:
        spec.check(encoder.spec.depth)
    last = max(spec.last_layers for spec in specs)
    outputs = encoder.layer_outputs(patches, last=last, grid=grid, execution=execution)
    plain, normed = outputs, []
    if any(spec.norm for spec in specs):
        deepest = max(spec.last_layers for spec in specs if spec.norm)
        normed = [encoder.norm(x) for x in outputs[-deepest:]]
    order = raster_order(grid or encoder.spec.grid)
    return {
        spec: _combined((normed if spec.norm else plain)[-spec.last_layers :], spec, order)
        for spec in specs
    }


def _combined(outputs: list[jax.Array], spec: FeatureSpec, order) -> jax.Array:
    """Features from the outputs of the layers that they are made of, in float32."""
    outputs = [x.astype(jnp.float32) for x in outputs]
    x = sum(outputs) / len(outputs) if spec.average_layers else jnp.concatenate(outputs, -1)
    if spec.pool:
        return x.mean(axis=1)
    return x[:, order] if spec.raster else x


def model_input(images, grid: Grid, mean, std):
    """What the encoder takes: normalised patches in block-raster order.

    Args:
        images: [batch, size, size, 3], uint8; or floats, which are normalised already.
        mean, std: of the RGB channels, for images in [0, 1].

    Returns:
        float32 [batch, tokens, patch_dim].
    """
    patches = patchify(images, grid)
    if images.dtype == jnp.uint8:
        return normalise_patches(patches, mean, std)
    return patches.astype(jnp.float32)


def load_encoder(
    path: str,
    step: int | None = None,
    *,
    config: str | ConfigDict = "",
    image_size: int = 0,
    dtype: str = "float32",
):
    """Loads a frozen encoder from a run, a checkpoint, or a file of weights from elsewhere.

    Args:
        path: whatever --checkpoint takes, see `xtra_jax.interop.open_checkpoint`.
        step: which checkpoint of a run; the newest by default.
        config: the pretraining config of a file, where its tensors don't tell enough.
        image_size: pixels per side of the images that will come, where that isn't the size the
            encoder was trained on: its positions are resized bicubically, as published.
        dtype: that the encoder computes in, "float32" or "bfloat16"; its config's is what it was
            trained in. float32 means float32 on every device, matrix products too.

    Returns:
        A function from images [batch, size, size, 3] and a `FeatureSpec` (`LINEAR` by default) to
        features, float32 [batch, tokens, width], or [batch, width] when pooled. Images are uint8,
        or float32 and normalised already, of jax, NumPy or anything that `np.asarray` takes; for
        others the function raises UserError. Every batch runs on jax's default device.

    Raises:
        UserError: there is no such checkpoint, or the config does not describe it.
    """
    # XLA's plain one runs on whatever device, and in whatever function of theirs, people call it.
    settings = {"model.dtype": dtype, "model.attention": "xla"}
    opened = open_checkpoint(path, config=config, settings=settings, step=step)
    spec, data = opened.spec, opened.config.data
    grid = spec.grid.resized(image_size) if image_size else spec.grid
    params = jax.device_put(opened.params["encoder"])

    @partial(jax.jit, static_argnums=2)
    def extract(params, images, features):
        patches = model_input(images, grid, data.mean, data.std)
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            return encoder_features(bind_encoder(spec, params), patches, features, grid=grid)

    def encode(images, features: FeatureSpec = LINEAR):
        size = grid.image_size
        if not isinstance(images, jax.Array):
            try:
                images = np.asarray(images)
            except (TypeError, ValueError) as error:  # a list of images of several sizes
                raise UserError(f"the encoder takes one array of images: {error}") from error
        known = images.dtype in ("uint8", "float32")
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or not known:
            raise UserError(
                f"the encoder takes uint8 images [batch, {size}, {size}, 3] (or float32, "
                f"normalised already), and got {images.dtype} {list(images.shape)}"
            )
        if images.dtype != "uint8" and not isinstance(images, jax.core.Tracer):
            refuse_unit_range(images)
        return extract(params, images, features)

    return encode
