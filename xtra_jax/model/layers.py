"""Transformer layers: one pre-norm layer, and stacks of them: unrolled, scanned, rematerialised."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xtra_jax.model.attention import Attention
from xtra_jax.model.execution import Execution
from xtra_jax.model.layer_norm import LayerNorm
from xtra_jax.model.linear import PRODUCT, Mlp
from xtra_jax.model.stochastic_depth import (
    add_to_subset,
    drop_path,
    drop_path_rates,
    subset_sizes,
)


class Layer(nnx.Module):
    """One pre-norm transformer layer over flat activations [batch * tokens, width]."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, hidden, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x,
        mask,
        num_tokens: int,
        execution: Execution,
        rate=None,
        key=None,
        kept: int | None = None,
    ):
        """[batch * tokens, width] to the same.

        Args:
            rate: of Bernoulli stochastic depth.
            key: of stochastic depth; None drops nothing.
            kept: with it, branches are computed for so many samples of each shard only.
        """
        keys = (None, None) if key is None else jax.random.split(key)

        def add(x, branch, branch_key):
            if branch_key is None:
                return x + branch(x)
            if kept is not None:
                return add_to_subset(x, branch, num_tokens, kept, branch_key, execution)
            return x + drop_path(branch(x), num_tokens, rate, branch_key)

        def attend(x):
            return self.attention(self.norm1(x), mask, num_tokens, execution)

        def transform(x):
            return self.mlp(self.norm2(x), execution)

        x = execution.place(add(x, attend, keys[0]), "tokens")
        return execution.place(add(x, transform, keys[1]), "tokens")


def make_layers(depth: int, make: Callable[[], Layer]) -> nnx.Dict:
    """Layers under string keys "00", "01", ..., which checkpoints keep as they are."""
    return nnx.Dict({f"{i:02d}": make() for i in range(depth)})


def run_layers(
    layers: nnx.Dict,
    x,
    mask: np.ndarray | None,
    num_tokens: int,
    execution: Execution,
    *,
    drop_path_rate: float = 0.0,
    drop_path_mode: str = "bernoulli",
    key=None,
    keep_last: int = 1,
) -> list:
    """Runs a stack of layers.

    Args:
        x: [batch * tokens, width].
        mask: bool [tokens, tokens] or None.
        drop_path_rate: of the last layer.
        drop_path_mode: one of `stochastic_depth.MODES`.
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
    kept = [None] * len(stack)
    if drops and drop_path_mode == "subset":
        in_shard = x.shape[0] // num_tokens // execution.batch_shards
        kept = subset_sizes(len(stack), drop_path_rate, in_shard)

    def apply_keeping(kept):
        def apply(state, x, rate, layer_key):
            layer = nnx.merge(graph, state)
            return layer(x, mask, num_tokens, execution, rate, layer_key, kept)

        if execution.remat == "full":
            return jax.checkpoint(apply)
        if execution.remat == "dots":
            policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
            return jax.checkpoint(apply, policy=policy)
        return apply

    def scan(x, group: slice):
        """The outputs of neighbouring layers that keep the same number of samples."""
        apply = apply_keeping(kept[group.start])
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states[group])

        def body(x, per_layer):
            x = apply(per_layer["state"], x, per_layer["rate"], per_layer.get("key"))
            return x, (x if keep_last > 1 else None)

        per_layer = {"state": stacked, "rate": rates[group]}
        x, outputs = jax.lax.scan(body, x, per_layer | ({"key": keys[group]} if drops else {}))
        return [x] if keep_last == 1 else list(outputs)

    outputs = []
    if execution.scan_layers:
        # A loop has one size of subset, so there are as many loops as sizes.
        begin = 0
        for _, same in itertools.groupby(kept):
            group = slice(begin, begin + len(list(same)))
            outputs += scan(outputs[-1] if outputs else x, group)
            begin = group.stop
    else:
        for i, state in enumerate(states):
            x = apply_keeping(kept[i])(state, x, rates[i], keys[i] if drops else None)
            outputs.append(x)
    return outputs[-keep_last:]
