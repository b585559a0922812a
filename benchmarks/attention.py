"""Attention alone, forward and backward, under the block causal mask: ours and others'."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import model
from benchmarks.turns import Contestant, Turn, race
from xtra_jax.model.attention import attend
from xtra_jax.model.masks import block_causal_mask
from xtra_jax.model.variants import XTRASpec

# "jax" is jax.nn.dot_product_attention, "torch" scaled_dot_product_attention.
KINDS = ("xla", "jax", "torch")


def inputs(spec: XTRASpec, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys, values [3, batch, tokens, heads, head width], an output's gradient, mask."""
    blocks = spec.grid.num_blocks - 1
    tokens, heads = blocks * spec.grid.tokens_per_block, spec.encoder.num_heads
    rng = np.random.default_rng(0)
    shape = (batch_size, tokens, heads, spec.encoder.width // heads)
    drawn = rng.normal(size=(4, *shape)).astype(np.float32)
    return drawn[:3], drawn[3], block_causal_mask(spec.grid, blocks)


def in_jax(spec: XTRASpec, batch_size: int, dtype: str, kind: str) -> tuple[Turn, dict]:
    qkv, gradient, mask = inputs(spec, batch_size)

    def attention(query, key, value):
        if kind == "jax":
            return jax.nn.dot_product_attention(query, key, value, mask=mask[None, None])
        return attend(query, key, value, mask, kind)

    @jax.jit
    def both(qkv, gradient):
        output, backward = jax.vjp(attention, *qkv)
        return output, backward(gradient)

    arguments = jax.device_put((jnp.asarray(qkv, dtype), jnp.asarray(gradient, dtype)))
    return lambda: jax.block_until_ready(both(*arguments)), {}


def in_torch(spec: XTRASpec, batch_size: int, dtype: str) -> tuple[Turn, dict]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    qkv, gradient, mask = (
        torch.from_numpy(np.array(a)).to(device) for a in inputs(spec, batch_size)
    )
    qkv, gradient = (a.to(getattr(torch, dtype)) for a in (qkv, gradient))
    heads_first = [x.transpose(1, 2).detach().requires_grad_() for x in qkv]
    gradient = gradient.transpose(1, 2)

    def turn():
        output = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        torch.autograd.grad(output, heads_first, gradient)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return turn, {"torch": torch.__version__}


def run(
    repeats: int,
    *,
    variant: str = "tiny",
    batch_size: int = 16,
    dtype: str = "float32",
    ways: tuple[str, ...] = KINDS[:2],
    baseline: str = "",
) -> dict:
    """Times attention of one encoder layer, without the last block's tokens.

    Args:
        ways: "jax", "torch", or an implementation of `attend`.
    """
    spec = model(variant)
    contestants = {
        name: Contestant(in_torch, (spec, batch_size, dtype))
        if name == "torch"
        else Contestant(in_jax, (spec, batch_size, dtype, name))
        for name in ways
    }
    baseline = baseline or ways[0]
    return {
        "case": f"attention, {variant}, batch {batch_size}, {dtype}, forward and backward",
        "baseline": baseline,
        "ways": race(contestants, baseline, repeats, warm_up=3),
    }
