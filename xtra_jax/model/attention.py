"""Multi-head attention, and the one place where the block causal mask is applied."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xtra_jax.model.execution import Execution
from xtra_jax.model.linear import Linear, widened

IMPLEMENTATIONS = ("xla", "halves", "cudnn")


def chosen(implementation: str, dtype, head_dim: int, num_tokens: int) -> str:
    """Which implementation a tower's attention is computed by, where one is asked for.

    cuDNN's kernel takes 16 bits and heads of a multiple of 8 and at most 128 wide; its gradient
    takes an even number of tokens under a mask (`jax.nn.dot_product_attention`). Halves of fewer
    than 128 tokens are not worth products of their own. What isn't taken is XLA's.

    Args:
        implementation: that of `Execution`.
        dtype: that the tower computes in.
    """
    fits = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    takes = {"xla": True, "halves": num_tokens >= 128, "cudnn": fits and num_tokens % 2 == 0}
    return implementation if takes[implementation] else "xla"


def attend(qkv, mask: np.ndarray | None, implementation: str = "xla"):
    """Softmax attention under a mask.

    Args:
        qkv: queries, keys and values, [batch, tokens, 3, heads, head_dim].
        mask: bool [tokens, tokens], True where a row's token attends to a column's; None masks
            nothing.
        implementation: "xla" runs everywhere: the mask is a bias of 0 or -inf on the logits, so
            that masked weights and their gradients are exactly zero. "halves" is the same, but for
            rounding, without half of what a block causal mask hides (`visible_parts`). "cudnn" is
            NVIDIA's fused kernel, for 16-bit inputs on a GPU.

    Returns:
        [batch, tokens, heads, head_dim].
    """
    if implementation == "cudnn":
        query, key, value = (qkv[:, :, i] for i in range(3))
        fused = None if mask is None else jnp.asarray(mask)[None, None]
        return jax.nn.dot_product_attention(query, key, value, mask=fused, implementation="cudnn")
    bias = None if mask is None else np.where(mask, 0.0, -np.inf).astype(np.float32)
    whole = ((0, qkv.shape[1], qkv.shape[1]),)
    parts = visible_parts(mask) if implementation == "halves" and mask is not None else whole
    return _plain(qkv, bias, parts)


def visible_parts(mask: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """What of the logits has to be computed: runs of rows, and how many columns they attend to.

    Under a block causal mask the upper half of the rows attends to the left half of the columns, so
    that a quarter of all products and weights is left out. Two runs: with more, what is saved is
    lost again in smaller products. One, where there is nothing to save.

    Returns:
        (first row, row after the last, number of columns) of each run, from the top.
    """
    tokens = len(mask)
    needed = tokens - mask[:, ::-1].argmax(axis=1)
    borders = np.flatnonzero(np.diff(needed) > 0) + 1
    if len(borders):
        cut = int(min(borders, key=lambda row: abs(2 * row - tokens)))
        columns = int(needed[:cut].max())
        if columns < tokens:
            return ((0, cut, columns), (cut, tokens, tokens))
    return ((0, tokens, tokens),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _plain(qkv, bias, parts):
    """Attention in matrix products and a softmax, its gradient written out.

    Derived automatically, gradients of queries, keys and values are padded and summed, and the
    weights are kept twice: in the dtype of the values, and in float32 from before.

    Args:
        parts: of the logits, as by `visible_parts`; outside of them all is masked.
    """
    return _forward(qkv, bias, parts)[0]


def _forward(qkv, bias, parts):
    # Heads first by hand: XLA makes fewer copies on CPUs than of einsums over tokens first.
    query, key, value = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
    query = query * query.shape[-1] ** -0.5
    weights, mixed = [], []
    for first, end, columns in parts:
        logits = jnp.einsum("bhtd,bhsd->bhts", query[:, :, first:end], key[:, :, :columns])
        logits = widened(logits)
        logits = logits if bias is None else logits + bias[first:end, :columns]
        part = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        mixed.append(jnp.einsum("bhts,bhsd->bhtd", part, value[:, :, :columns]))
        weights.append(part)
    return jnp.concatenate(mixed, axis=2).swapaxes(1, 2), (query, key, value, weights)


def _backward(parts, saved, dmixed):
    query, key, value, weights = saved
    dmixed = dmixed.swapaxes(1, 2)
    dqueries, dkeys, dvalues = [], [], []
    for (first, end, columns), part in zip(parts, weights, strict=True):
        dpart = dmixed[:, :, first:end]
        below = ((0, 0), (0, 0), (0, key.shape[2] - columns), (0, 0))
        dvalues.append(jnp.pad(jnp.einsum("bhts,bhtd->bhsd", part, dpart), below))
        dweights = widened(jnp.einsum("bhtd,bhsd->bhts", dpart, value[:, :, :columns]))
        wide = widened(part)
        dlogits = wide * (dweights - (wide * dweights).sum(axis=-1, keepdims=True))
        dlogits = dlogits.astype(query.dtype)
        dqueries.append(jnp.einsum("bhts,bhsd->bhtd", dlogits, key[:, :, :columns]))
        dkey = jnp.einsum("bhts,bhtd->bhsd", dlogits, query[:, :, first:end])
        dkeys.append(jnp.pad(dkey, below))
    dquery = jnp.concatenate(dqueries, axis=2) * query.shape[-1] ** -0.5
    dkey, dvalue = (functools.reduce(jnp.add, terms) for terms in (dkeys, dvalues))
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
