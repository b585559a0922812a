"""Attention alone on a GPU: does cuDNN compute what XLA computes, and how long does either take?"""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp

from benchmarks.gpu_settings import Settings
from benchmarks.gpu_step import spec_of
from xtra_jax.model.attention import attend
from xtra_jax.model.masks import block_causal_mask

BATCH = 64
REPEATS = 50
# How far bfloat16 may be from float32, relative to the whole of an array. Rounding inputs, weights
# and results gives about 4e-3; without the mask it is about 1.
TOLERANCE = 2e-2


def compared(model: str, batch: int = BATCH) -> dict:
    """Attention of one encoder layer in bfloat16, forward and backward, against float32.

    Args:
        model: of `gpu_settings.Settings`.

    Returns:
        For each implementation "deviation", the largest of those of the output and of the
        gradients, and "seconds"; or "error". "cudnn_is_right": it deviates no further than it may.
    """
    spec = spec_of(Settings(model, 1, batch))
    blocks = spec.grid.num_blocks - 1
    mask = block_causal_mask(spec.grid, blocks)
    heads = spec.encoder.num_heads
    shape = (batch, blocks * spec.grid.tokens_per_block, 4, heads, spec.encoder.width // heads)
    given = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    with jax.default_matmul_precision("highest"):
        expected = _both_ways(mask, "xla")(given.astype(jnp.float32))
    found: dict = {}
    for implementation in ("xla", "cudnn"):
        call = _both_ways(mask, implementation)
        try:
            deviation = _furthest(call(given), expected)
        except Exception as error:  # that a library lacks a kernel is an answer, too
            found[implementation] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        begin = time.perf_counter()
        for _ in range(REPEATS):
            out = call(given)
        jax.block_until_ready(out)
        seconds = (time.perf_counter() - begin) / REPEATS
        found[implementation] = {"deviation": deviation, "seconds": seconds}
    right = found["cudnn"].get("deviation", float("inf")) <= TOLERANCE
    return {"attention": found, "cudnn_is_right": right}


def _both_ways(mask, implementation: str):
    """Queries, keys, values and the output's gradient, side by side, to the output and theirs."""

    @jax.jit
    def call(given):
        qkv, gradient = given[:, :, :3], given[:, :, 3]
        output, backward = jax.vjp(lambda qkv: attend(qkv, mask, implementation), qkv)
        (gradients,) = backward(gradient)
        return output, *(gradients[:, :, i] for i in range(3))

    return call


def _furthest(values, expected) -> float:
    """The largest norm of a difference over that of what is expected.

    Raises:
        ArithmeticError: it is no number.
    """
    relative = [
        float(jnp.linalg.norm((value - wanted).ravel()) / jnp.linalg.norm(wanted.ravel()))
        for value, wanted in zip(values, expected, strict=True)
    ]
    if not all(map(math.isfinite, relative)):
        raise ArithmeticError("what it computes is no number")
    return max(relative)
