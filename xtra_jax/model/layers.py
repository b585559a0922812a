"""Transformer layers: one pre-norm layer, and stacks of them: unrolled, scanned, rematerialised."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xtra_jax.model.attention import Attention
from xtra_jax.model.execution import Execution
from xtra_jax.model.linear import PRODUCT, Mlp


def layer_norm(width: int, *, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The two-pass variance: the fast one cancels catastrophically on large means.
    return nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs)


def drop_path(x, num_tokens: int, rate, key):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for whole samples.

    Args:
        x: [batch * tokens, width], the branch's output.
        rate: the probability that a sample is dropped; survivors are scaled by 1 / (1 - rate).
    """
    samples = x.reshape(-1, num_tokens, x.shape[-1])
    keep = jax.random.bernoulli(key, 1.0 - rate, (samples.shape[0], 1, 1))
    scale = jnp.where(keep, 1.0 / (1.0 - rate), 0.0).astype(x.dtype)
    return (samples * scale).reshape(x.shape)


class Layer(nnx.Module):
    """One pre-norm transformer layer over flat activations [batch * tokens, width]."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x, mask, num_tokens: int, execution: Execution, rate=None, key=None):
        def residual(branch, branch_key):
            return branch if key is None else drop_path(branch, num_tokens, rate, branch_key)

        keys = (None, None) if key is None else jax.random.split(key)
        mixed = self.attention(self.norm1(x), mask, num_tokens, execution)
        x = execution.place(x + residual(mixed, keys[0]), "tokens")
        x = x + residual(self.mlp(self.norm2(x), execution), keys[1])
        return execution.place(x, "tokens")


def make_layers(depth: int, make: Callable[[], Layer]) -> nnx.Dict:
    """Layers under string keys "00", "01", ..., which checkpoints keep as they are."""
    return nnx.Dict({f"{i:02d}": make() for i in range(depth)})


def drop_path_rates(depth: int, rate: float) -> np.ndarray:
    """The rate of each layer, growing linearly from 0 to `rate`: float32 [depth]."""
    return np.linspace(0.0, rate, depth, dtype=np.float32)


def run_layers(
    layers: nnx.Dict,
    x,
    mask: np.ndarray | None,
    num_tokens: int,
    execution: Execution,
    *,
    drop_path_rate: float = 0.0,
    key=None,
    keep_last: int = 1,
) -> list:
    """Runs a stack of layers.

    Args:
        x: [batch * tokens, width].
        mask: bool [tokens, tokens] or None.
        drop_path_rate: of the last layer.
        key: of stochastic depth; None, as in evaluation, drops nothing.
        keep_last: how many layers' outputs to return.

    Returns:
        The outputs of the last `keep_last` layers, in order, each [batch * tokens, width].
    """
    stack = [layers[name] for name in sorted(layers)]
    graph, _ = nnx.split(stack[0])
    states = [nnx.split(layer)[1] for layer in stack]
    drops = key is not None and drop_path_rate > 0
    rates = drop_path_rates(len(stack), drop_path_rate)
    keys = jax.random.split(key, len(stack)) if drops else None

    def apply(state, x, rate, layer_key):
        layer = nnx.merge(graph, state)
        return layer(x, mask, num_tokens, execution, rate, layer_key)

    if execution.remat == "full":
        apply = jax.checkpoint(apply)
    elif execution.remat == "dots":
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
        apply = jax.checkpoint(apply, policy=policy)

    if execution.scan_layers:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        def body(x, per_layer):
            x = apply(per_layer["state"], x, per_layer["rate"], per_layer.get("key"))
            return x, (x if keep_last > 1 else None)

        per_layer = {"state": stacked, "rate": rates} | ({"key": keys} if drops else {})
        x, outputs = jax.lax.scan(body, x, per_layer)
        return [x] if keep_last == 1 else list(outputs[-keep_last:])

    outputs = []
    for i, state in enumerate(states):
        x = apply(state, x, rates[i], keys[i] if drops else None)
        outputs.append(x)
    return outputs[-keep_last:]
