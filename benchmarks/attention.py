"""Attention alone, forward and backward, under the block causal mask: ours and others'.

Of one encoder layer, without the last block's tokens; images/s are images through that layer. MFU
is printed where the peak rate of the device is known, and counts the full rectangle of the tokens.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import check_torch, check_ways, model
from benchmarks.device import here
from benchmarks.memory import jax_peak_mib, torch_peak_mib
from benchmarks.turns import Contestant, Turn, race
from xtra_jax.errors import UserError
from xtra_jax.model.attention import IMPLEMENTATIONS, attend
from xtra_jax.model.flops import forward_flops
from xtra_jax.model.masks import block_causal_mask
from xtra_jax.model.variants import XTRASpec

# "jax" is jax.nn.dot_product_attention, "torch" scaled_dot_product_attention; others are ours.
KINDS = (*IMPLEMENTATIONS, "jax", "torch")
WAYS = ("xla", "jax")


def inputs(spec: XTRASpec, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values as a layer projects them, an output's gradient, and the mask.

    [batch, tokens, 3, heads, head width], [batch, tokens, heads, head width], [tokens, tokens].
    """
    blocks = spec.grid.num_blocks - 1
    tokens, heads = blocks * spec.grid.tokens_per_block, spec.encoder.num_heads
    rng = np.random.default_rng(0)
    shape = (batch_size, tokens, 4, heads, spec.encoder.width // heads)
    drawn = rng.normal(size=shape).astype(np.float32)
    return drawn[:, :, :3], drawn[:, :, 3], block_causal_mask(spec.grid, blocks)


def in_jax(spec: XTRASpec, batch_size: int, dtype: str, kind: str) -> tuple[Turn, dict]:
    qkv, gradient, mask = inputs(spec, batch_size)

    def attention(qkv):
        if kind == "jax":
            query, key, value = (qkv[:, :, i] for i in range(3))
            return jax.nn.dot_product_attention(query, key, value, mask=mask[None, None])
        return attend(qkv, mask, kind)

    @jax.jit
    def both(qkv, gradient):
        output, backward = jax.vjp(attention, qkv)
        return output, backward(gradient)

    arguments = jax.device_put((jnp.asarray(qkv, dtype), jnp.asarray(gradient, dtype)))
    return lambda: jax.block_until_ready(both(*arguments)), {}


def in_torch(spec: XTRASpec, batch_size: int, dtype: str) -> tuple[Turn, dict]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default
    qkv, gradient, mask = (
        torch.from_numpy(np.array(a)).to(device) for a in inputs(spec, batch_size)
    )
    qkv, gradient = (a.to(getattr(torch, dtype)) for a in (qkv, gradient))
    qkv.requires_grad_()

    def turn():
        heads_first = qkv.permute(2, 0, 3, 1, 4)
        output = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        torch.autograd.grad(output.transpose(1, 2), qkv, gradient)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return turn, {"torch": torch.__version__}


def run(
    repeats: int,
    *,
    variant: str = "tiny",
    batch_size: int = 16,
    dtype: str = "float32",
    ways: tuple[str, ...] = WAYS,
    baseline: str = "",
) -> dict:
    """Times attention of one encoder layer, without the last block's tokens.

    Args:
        ways: of `KINDS`.

    Raises:
        UserError: a way or the baseline does not exist, or cannot be timed here.
        RunFailed: a way's process died.
    """
    check_ways(ways, baseline)
    for name in ways:
        if name not in KINDS:
            raise UserError(f"there is no way {name!r} of attention, only {', '.join(KINDS)}")
        if name == "torch":
            check_torch(name)
    device = here()
    if "cudnn" in ways and (device.platform != "gpu" or dtype != "bfloat16"):
        raise UserError("'cudnn' needs --dtype bfloat16 and an NVIDIA GPU")
    spec = model(variant)
    contestants = {
        name: Contestant(in_torch, (spec, batch_size, dtype), device_peak_mib=torch_peak_mib)
        if name == "torch"
        else Contestant(in_jax, (spec, batch_size, dtype, name), device_peak_mib=jax_peak_mib)
        for name in ways
    }
    baseline = baseline or ways[0]
    found = race(contestants, baseline, repeats, warm_up=3, in_turns=device.in_turns)
    layers = forward_flops(spec, drop_last_block=True)["encoder_attention"]
    flops, peak = 3 * layers / spec.encoder.depth, device.peak_flops(dtype)
    for row in found.values():
        row["images_per_s"] = batch_size / row["seconds"]
        row["mfu"] = row["images_per_s"] * flops / peak if peak else None
    return {
        "case": f"attention, {variant}, batch {batch_size}, {dtype}, forward and backward",
        "order": device.order,
        "baseline": baseline,
        "ways": found,
    }
