"""Linear layers and MLPs with the published initialisation."""

from __future__ import annotations

import jax
from flax import nnx

# The published code truncates at +-2 absolute, a hundred standard deviations: no truncation at all.
normal_init = nnx.initializers.normal(0.02)


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int,
        *,
        out_bias: bool = True,
        dtype,
        rngs: nnx.Rngs,
    ):
        shared = dict(dtype=dtype, kernel_init=normal_init, rngs=rngs)
        self.fc1 = nnx.Linear(width, hidden, **shared)
        self.fc2 = nnx.Linear(hidden, out, use_bias=out_bias, **shared)

    def __call__(self, x):
        """[..., width] to [..., out]."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
