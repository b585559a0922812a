"""Multi-head attention, and the one place where the block causal mask is applied."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xtra_jax.model.execution import Execution
from xtra_jax.model.linear import Linear, widened

IMPLEMENTATIONS = ("xla", "cudnn")


def chosen(implementation: str, dtype, head_dim: int, num_tokens: int) -> str:
    """Which implementation a tower's attention is computed by, where one is asked for.

    cuDNN's kernel takes 16 bits and heads of a multiple of 8 and at most 128 wide; its gradient
    takes an even number of tokens under a mask (`jax.nn.dot_product_attention`). What it doesn't
    take is XLA's.

    Args:
        implementation: that of `Execution`.
        dtype: that the tower computes in.
    """
    fits = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    return implementation if fits and num_tokens % 2 == 0 else "xla"


def attend(qkv, mask: np.ndarray | None, implementation: str = "xla"):
    """Softmax attention under a mask.

    Args:
        qkv: queries, keys and values, [batch, tokens, 3, heads, head_dim].
        mask: bool [tokens, tokens], True where a row's token attends to a column's; None masks
            nothing.
        implementation: "xla" runs everywhere: the mask is a bias of 0 or -inf on the logits, so
            that masked weights and their gradients are exactly zero. "cudnn" is NVIDIA's fused
            kernel, for 16-bit inputs on a GPU.

    Returns:
        [batch, tokens, heads, head_dim].
    """
    if implementation == "cudnn":
        query, key, value = (qkv[:, :, i] for i in range(3))
        fused = None if mask is None else jnp.asarray(mask)[None, None]
        return jax.nn.dot_product_attention(query, key, value, mask=fused, implementation="cudnn")
    bias = None if mask is None else np.where(mask, 0.0, -np.inf).astype(np.float32)
    return _plain(qkv, bias)


@jax.custom_vjp
def _plain(qkv, bias):
    """Attention in matrix products and a softmax, its gradient written out.

    Derived automatically, gradients of queries, keys and values are padded and summed, and the
    weights are kept twice: in the dtype of the values, and in float32 from before.
    """
    return _forward(qkv, bias)[0]


def _forward(qkv, bias):
    # Heads first by hand: XLA makes fewer copies on CPUs than of einsums over tokens first.
    query, key, value = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
    query = query * query.shape[-1] ** -0.5
    logits = widened(jnp.einsum("bhtd,bhsd->bhts", query, key))
    weights = jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)
    weights = weights.astype(value.dtype)
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights, value)
    return mixed.swapaxes(1, 2), (query, key, value, weights)


def _backward(saved, dmixed):
    query, key, value, weights = saved
    dmixed = dmixed.swapaxes(1, 2)
    dvalue = jnp.einsum("bhts,bhtd->bhsd", weights, dmixed)
    dweights = widened(jnp.einsum("bhtd,bhsd->bhts", dmixed, value))
    wide = widened(weights)
    dlogits = wide * (dweights - (wide * dweights).sum(axis=-1, keepdims=True))
    dlogits = dlogits.astype(query.dtype)
    dquery = jnp.einsum("bhts,bhsd->bhtd", dlogits, key) * query.shape[-1] ** -0.5
    dkey = jnp.einsum("bhts,bhtd->bhsd", dlogits, query)
    return jnp.stack([d.swapaxes(1, 2) for d in (dquery, dkey, dvalue)], axis=2), None


_plain.defvjp(_forward, _backward)


class Attention(nnx.Module):
    """Multi-head self-attention with biased qkv, as in ViT.

    The qkv kernel is [width, 3, heads, head_dim] and the output kernel [heads, head_dim, width], so
    that either can be sharded over whole heads.
    """

    def __init__(self, width: int, num_heads: int, *, dtype, rngs: nnx.Rngs):
        head_dim = width // num_heads
        self.qkv = Linear((width,), (3, num_heads, head_dim), dtype=dtype, rngs=rngs)
        self.out = Linear((num_heads, head_dim), (width,), dtype=dtype, rngs=rngs)

    def __call__(self, x, mask: np.ndarray | None, num_tokens: int, execution: Execution):
        """x: [batch * tokens, width], flat; returns the same shape."""
        qkv = execution.place(self.qkv(x, execution), "heads")
        qkv = qkv.reshape(-1, num_tokens, *qkv.shape[1:])
        implementation = chosen(execution.attention, qkv.dtype, qkv.shape[-1], num_tokens)
        mixed = attend(qkv, mask, implementation)
        return self.out(mixed.reshape(-1, *mixed.shape[2:]), execution)
