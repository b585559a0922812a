"""XTRA: encoder, projection, predictor, block embedding and pixel heads, and the objective.

Amrani, Karlinsky, Bronstein, "Sample- and Parameter-Efficient Auto-Regressive Image Models", CVPR
2025 (arXiv 2411.15648).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from xtra_jax.model.encoder import Encoder
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.linear import Mlp
from xtra_jax.model.patches import to_blocks
from xtra_jax.model.predictor import Predictor
from xtra_jax.model.variants import XTRASpec

LOSSES = ("mse", "l1")


class XTRA(nnx.Module):
    """The whole pretraining model: from each block, it predicts the pixels of the next m blocks."""

    def __init__(self, spec: XTRASpec, *, rngs: nnx.Rngs):
        self.spec = spec
        dtype, predictor_dtype = jnp.dtype(spec.dtype), jnp.dtype(spec.predictor_dtype)
        width = spec.predictor.width
        self.encoder = Encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.projection = Mlp(
            spec.encoder.width,
            spec.predictor.hidden,
            width,
            out_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.predictor = Predictor(spec.predictor, spec.grid, dtype=predictor_dtype, rngs=rngs)
        self.heads = nnx.Dict(
            {
                str(j): Mlp(
                    spec.grid.tokens_per_block * width,
                    spec.head.hidden,
                    spec.grid.block_dim,
                    dtype=predictor_dtype,
                    rngs=rngs,
                )
                for j in range(spec.head.num_tokens)
            }
        )

    def __call__(
        self, patches, *, grid: Grid | None = None, order=None, execution=Execution(), key=None
    ) -> list:
        """Predicts the next blocks.

        Args:
            patches: [batch, tokens, patch_dim] normalised pixels in block-raster order (or in
                `order`); the last block may be left out, since nothing attends to it.
            grid, order, execution, key: as for `Encoder`.

        Returns:
            For each head j a float32 [batch, blocks, block_dim]: entry i predicts block i + 1 + j.
        """
        grid = grid or self.spec.grid
        x = self.encoder(patches, grid=grid, order=order, execution=execution, key=key)
        x = execution.place(self.projection(x, execution), "tokens")
        x = self.predictor(x, grid=grid, order=order, execution=execution)
        blocks = execution.place(to_blocks(x, grid), "tokens")
        return [
            execution.place(self.heads[name](blocks, execution).astype(jnp.float32), "tokens")
            for name in sorted(self.heads, key=int)
        ]


@functools.cache
def _abstract(spec: XTRASpec, part: str = ""):
    model = nnx.eval_shape(lambda: XTRA(spec, rngs=nnx.Rngs(0)))
    return nnx.split(getattr(model, part) if part else model, nnx.Param)


def abstract_params(spec: XTRASpec) -> dict:
    """The parameters' shapes and dtypes as nested dicts of `jax.ShapeDtypeStruct`."""
    return nnx.to_pure_dict(_abstract(spec)[1])


def init_params(spec: XTRASpec, key) -> dict:
    """Fresh parameters, float32, as nested dicts."""
    return nnx.to_pure_dict(nnx.state(XTRA(spec, rngs=nnx.Rngs(key)), nnx.Param))


def bind(spec: XTRASpec, params: dict) -> XTRA:
    """The model with these parameters, for use inside a traced function or outside."""
    return _merged(*_abstract(spec), params)


def bind_encoder(spec: XTRASpec, encoder_params: dict) -> Encoder:
    """The encoder alone, from its own parameters (`params["encoder"]`)."""
    return _merged(*_abstract(spec, "encoder"), encoder_params)


def _merged(graph, abstract, params: dict):
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def reorder_blocks(patches, grid: Grid, order):
    """Puts the blocks of patches [batch, tokens, patch_dim] in the order given, int [blocks]."""
    blocks = to_blocks(patches, grid)[:, order]
    return blocks.reshape(patches.shape)


def block_targets(patches, grid: Grid, *, norm_pix: bool):
    """The pixels each block should be predicted as: float32 [batch, blocks, block_dim].

    With `norm_pix` every block is normalised by its own mean and *unbiased* variance.
    """
    blocks = to_blocks(patches, grid).astype(jnp.float32)
    if not norm_pix:
        return blocks
    mean = blocks.mean(axis=-1, keepdims=True)
    variance = blocks.var(axis=-1, ddof=1, keepdims=True)
    return (blocks - mean) / jnp.sqrt(variance + 1e-6)


def example_losses(predictions: list, targets, *, kind: str):
    """The objective of every example: its mean over predicted blocks, averaged over the heads.

    Args:
        predictions: of each head, [batch, blocks or blocks - 1, block_dim].
        targets: [batch, blocks, block_dim].
        kind: "mse" or "l1".

    Returns:
        float32 [batch].
    """
    power = {"mse": jnp.square, "l1": jnp.abs}[kind]
    losses = []
    for j, prediction in enumerate(predictions):
        target = targets[:, 1 + j :]
        losses.append(power(prediction[:, : target.shape[1]] - target).mean(axis=(1, 2)))
    return sum(losses) / len(losses)


def xtra_losses(
    model: XTRA,
    patches,
    *,
    kind: str = "mse",
    norm_pix: bool = True,
    drop_last_block: bool = True,
    order=None,
    grid: Grid | None = None,
    execution: Execution = Execution(),
    key=None,
):
    """The XTRA objective on normalised patches in block-raster order.

    Args:
        patches: [batch, tokens, patch_dim], all blocks present.
        drop_last_block: leave the last block out of the model. It is never context for a
            prediction, so neither loss nor gradients change.
        order: int [blocks], the pseudo-random order's permutation of this step, or None.

    Returns:
        float32 [batch], the loss of every example.
    """
    grid = grid or model.spec.grid
    if order is not None:
        patches = reorder_blocks(patches, grid, order)
    targets = block_targets(patches, grid, norm_pix=norm_pix)
    context = patches[:, : -grid.tokens_per_block] if drop_last_block else patches
    predictions = model(context, grid=grid, order=order, execution=execution, key=key)
    return example_losses(predictions, targets, kind=kind)
