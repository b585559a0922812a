"""The encoder: a vision transformer under the block causal mask, without a class token."""

from __future__ import annotations

from flax import nnx

from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.layer_norm import LayerNorm
from xtra_jax.model.layers import Layer, make_layers, run_layers
from xtra_jax.model.linear import Linear, add_shared, normal_init
from xtra_jax.model.masks import block_causal_mask
from xtra_jax.model.positions import block_positions
from xtra_jax.model.variants import EncoderSpec

# Kaiming-normal over the fan-in, untruncated, as PyTorch initialises the patch convolution.
patch_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class Encoder(nnx.Module):
    """Patches in, tokens out; both in block-raster order, or in the order of blocks given."""

    def __init__(self, spec: EncoderSpec, *, dtype, rngs: nnx.Rngs):
        self.spec = spec
        self.patch_embed = Linear(
            (spec.grid.patch_dim,), (spec.width,), dtype=dtype, kernel_init=patch_init, rngs=rngs
        )
        self.position = nnx.Param(normal_init(rngs.params(), (spec.grid.num_tokens, spec.width)))
        self.layers = make_layers(
            spec.depth,
            lambda: Layer(spec.width, spec.num_heads, spec.mlp_hidden, dtype=dtype, rngs=rngs),
        )
        self.norm = LayerNorm(spec.width, dtype=dtype, rngs=rngs)

    def __call__(self, patches, *, grid: Grid | None = None, order=None, execution, key=None):
        """Encodes patches: [batch, tokens, patch_dim] to [batch, tokens, width], normalised.

        Args:
            patches: normalised pixels; trailing blocks may be absent.
            grid: of the images when it isn't the encoder's own: positions are resized.
            order: int [blocks], the order in which the patches' blocks come; raster when None.
            execution: see `layers.Execution`.
            key: of stochastic depth, in training.
        """
        (x,) = self.layer_outputs(
            patches, last=1, grid=grid, order=order, execution=execution, key=key
        )
        return self.norm(x)

    def layer_outputs(
        self,
        patches,
        *,
        last: int,
        grid: Grid | None = None,
        order=None,
        execution: Execution,
        key=None,
    ) -> list:
        """The outputs of the last layers, before the final norm: each [batch, tokens, width]."""
        grid = grid or self.spec.grid
        batch, num_tokens, _ = patches.shape
        num_blocks = num_tokens // grid.tokens_per_block
        positions = block_positions(self.position[...], grid, num_blocks, order)
        x = add_shared(self.patch_embed(patches, execution), positions)
        outputs = run_layers(
            self.layers,
            execution.place(x.reshape(batch * num_tokens, -1), "tokens"),
            block_causal_mask(grid, num_blocks),
            num_tokens,
            execution,
            drop_path_rate=self.spec.drop_path,
            drop_path_mode=self.spec.drop_path_mode,
            key=key,
            keep_last=last,
        )
        return [x.reshape(batch, num_tokens, -1) for x in outputs]
