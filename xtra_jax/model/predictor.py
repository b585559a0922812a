"""The predictor ("decoder"): a narrow block-causal transformer between encoder and pixel heads."""

from __future__ import annotations

from flax import nnx

from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.layer_norm import LayerNorm
from xtra_jax.model.layers import Layer, make_layers, run_layers
from xtra_jax.model.linear import add_shared, normal_init
from xtra_jax.model.masks import block_causal_mask
from xtra_jax.model.positions import block_positions
from xtra_jax.model.variants import PredictorSpec


class Predictor(nnx.Module):
    """Adds its own positions, runs its layers, normalises."""

    def __init__(self, spec: PredictorSpec, grid: Grid, *, dtype, rngs: nnx.Rngs):
        self.grid = grid
        self.dtype = dtype
        self.position = nnx.Param(normal_init(rngs.params(), (grid.num_tokens, spec.width)))
        self.layers = make_layers(
            spec.depth,
            lambda: Layer(spec.width, spec.num_heads, 4 * spec.width, dtype=dtype, rngs=rngs),
        )
        self.norm = LayerNorm(spec.width, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, grid: Grid | None = None, order=None, execution: Execution):
        """[batch, tokens, width] to the same; `grid` and `order` as for the encoder."""
        grid = grid or self.grid
        batch, num_tokens, width = x.shape
        num_blocks = num_tokens // grid.tokens_per_block
        positions = block_positions(self.position[...], grid, num_blocks, order)
        x = add_shared(x.astype(self.dtype), positions)
        (x,) = run_layers(
            self.layers,
            execution.place(x.reshape(batch * num_tokens, width), "tokens"),
            block_causal_mask(grid, num_blocks),
            num_tokens,
            execution,
        )
        return self.norm(x).reshape(batch, num_tokens, width)
