"""Stochastic depth (Huang et al. 2016): residual branches that are dropped for whole samples.

Two ways. "bernoulli" computes every branch for all samples and drops each with the layer's rate,
independently of the others. "subset", as in DINOv2 (Oquab et al. 2023), computes a branch only for
a random subset of the samples, of a size that is fixed when the step is compiled: what is dropped
costs nothing. A branch's expectation is the same in both; only how many are dropped no longer
varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from xtra_jax.errors import UserError
from xtra_jax.model.execution import Execution
from xtra_jax.model.linear import widened

MODES = ("bernoulli", "subset")


def drop_path(x, num_tokens: int, rate, key):
    """Drops a residual branch for whole samples, each with the same probability.

    Args:
        x: [batch * tokens, width], the branch's output.
        rate: the probability that a sample is dropped; survivors are scaled by 1 / (1 - rate).
    """
    samples = x.reshape(-1, num_tokens, x.shape[-1])
    keep = jax.random.bernoulli(key, 1.0 - rate, (samples.shape[0], 1, 1))
    scale = jnp.where(keep, 1.0 / (1.0 - rate), 0.0)
    return _scaled(samples, scale).reshape(x.shape)


def add_to_subset(
    x, branch: Callable, num_tokens: int, kept: int, key, execution: Execution = Execution()
):
    """Adds a residual branch to a random subset of the samples, and computes it for no others.

    Every shard of the batch draws a subset of its own samples, so that none leaves its device.

    Args:
        x: [batch * tokens, width], samples in shards of consecutive ones.
        branch: of [any * tokens, width], what is added to the samples that it is given.
        kept: size of each shard's subset. What is added is scaled by a shard's samples over it,
            one over the probability that a sample is kept.

    Returns:
        [batch * tokens, width].
    """
    shards = execution.batch_shards
    samples = execution.place(x.reshape(shards, -1, num_tokens, x.shape[-1]), "tokens")
    in_shard = samples.shape[1]
    if kept == in_shard:
        return x + branch(x)
    rows = kept_samples(key, shards, in_shard, kept)
    hints = dict(indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds")
    chosen = jax.vmap(lambda samples, rows: samples.at[rows].get(**hints))(samples, rows)
    chosen = execution.place(chosen, "tokens").reshape(-1, x.shape[-1])
    added = _scaled(branch(chosen), in_shard / kept)
    added = execution.place(added.reshape(shards, kept, num_tokens, -1), "tokens")
    samples = jax.vmap(lambda samples, rows, added: samples.at[rows].add(added, **hints))(
        samples, rows, added
    )
    return execution.place(samples, "tokens").reshape(x.shape)


def _scaled(x, scale):
    """x times a float32 scale, rounded once: a scale in bfloat16 would be off by up to 0.4 %."""
    return (widened(x) * scale).astype(x.dtype)


def kept_samples(key, shards: int, in_shard: int, kept: int):
    """Draws the samples that each shard keeps: int [shards, kept], ascending, without repeats."""
    order = jnp.argsort(jax.random.bits(key, (shards, in_shard)), axis=1)
    return jnp.sort(order[:, :kept], axis=1)


def drop_path_rates(depth: int, rate: float) -> np.ndarray:
    """The rate of each layer, growing linearly from 0 to `rate`: float32 [depth]."""
    return np.linspace(0.0, rate, depth, dtype=np.float32)


def subset_sizes(depth: int, rate: float, samples: int) -> tuple[int, ...]:
    """How many of a shard's samples each layer keeps.

    The nearest whole number to `samples * (1 - rate of the layer)`, halves rounded up, and at
    least 1.

    Raises:
        UserError: even the last layer would keep all of them, so that nothing is ever dropped.
    """
    rates = np.linspace(0.0, rate, depth)
    # What is half a sample but for rounding, as 5 * (1 - 0.1), counts as half.
    sizes = tuple(max(1, math.floor(samples * (1 - rate) + 0.5 + 1e-9)) for rate in rates)
    if rates[-1] > 0 and sizes[-1] == samples:
        raise UserError(
            f"model.drop_path_mode=subset at model.drop_path={rate:g} drops none of the {samples} "
            "images that a device has at a time: give it at least "
            f"{max(math.floor(0.5 / rate) + 1, 2)}, or use model.drop_path_mode=bernoulli"
        )
    return sizes
